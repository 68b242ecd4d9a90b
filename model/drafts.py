"""Several drafts of a picture, of which the model keeps the one in which it best reads what it was asked for.

A model that both draws and reads needs no other to choose: each draft is shown to it with the request to describe it,
and the draft wins after which the prompt is the likeliest answer. Reading a draft costs a fraction of writing it.

Source: Ramesh et al., "Zero-Shot Text-to-Image Generation", https://arxiv.org/abs/2102.12092, sec. 2.6.
Differs: the model that drew chooses, where DALL-E has a contrastive model to rank its samples.
"""

import random
from collections.abc import Sequence

from rebus.data.samples import Message, Picture


def num_drafts(message: Message, best_of: int) -> int:
    """Returns how many drafts a message gets: a text that speaks of another picture does not describe the new one."""
    return 1 if any(isinstance(part, Picture) for part in message.parts) else best_of


def draft_seed(seed: int, draft: int) -> int:
    """Returns the seed of a draft; the first has that of the picture, so it is what one draft alone would be."""
    return random.Random(f"{seed}/{draft}").getrandbits(63) if draft else seed


def best_drafts(likelihoods: Sequence[float], numbers: Sequence[int]) -> list[int]:
    """Returns for each picture the index of its likeliest draft, the first of equals.

    Args:
        likelihoods: of all drafts, those of the first picture first.
        numbers: how many drafts each picture has, at least one.
    """
    assert sum(numbers) == len(likelihoods)
    best, start = [], 0
    for number in numbers:
        best.append(max(range(start, start + number), key=likelihoods.__getitem__))
        start += number
    return best
