"""Several drafts of a picture, of which the model keeps the one in which it best reads what it was asked for.

A model that both draws and reads needs no other to choose: each draft is shown to it with the request to describe it,
and the draft wins in which it would tell most words of the prompt, each given those before it. Probabilities are added,
not their logarithms, so that one word in which no draft can please it, such as an art style in which it never saw the
thing, does not decide alone. What it reads surely may still be no picture that it would draw, such as a heap of parts:
so the likelihood of the codes after the prompt counts too, a little. Judging a draft costs a fraction of writing it.

Source: Ramesh et al., "Zero-Shot Text-to-Image Generation", https://arxiv.org/abs/2102.12092, sec. 2.6.
Differs: the model that drew chooses, where DALL-E has a contrastive model to rank its samples.
"""

import random
from collections.abc import Sequence

from rebus.data.rendering import render_prompt
from rebus.data.samples import Message, Picture
from rebus.model.engine import Engine
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import Tokens

CODES_SHARE = 0.1
"""By which the log-likelihood of a draft's codes is multiplied beside the words that are told of it (NOTES.md)."""


def prompt_text(message: Message) -> str:
    """Returns the text that says what the picture it asks for shows; none where it speaks of another picture."""
    texts = [part for part in message.parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(message.parts) else ""


def num_drafts(message: Message, best_of: int) -> int:
    """Returns how many drafts a message gets: without a description of the picture nothing could choose."""
    return best_of if prompt_text(message) else 1


def draft_seed(seed: int, draft: int) -> int:
    """Returns the seed of a draft; the first has that of the picture, so it is what one draft alone would be."""
    return random.Random(f"{seed}/{draft}").getrandbits(63) if draft else seed


def read_back(
    engine: Engine,
    text_tokenizer: TextTokenizer,
    caption_request: str,
    drafts: Sequence[Tokens],
    messages: Sequence[Message],
) -> list[float]:
    """Returns how many ids of the text that asked for each draft the model would tell if it were to describe it."""
    asked = [[Message("user", (Picture(tokens=draft), caption_request))] for draft in drafts]
    shown = [render_prompt(chat, text_tokenizer, engine.vocabulary) for chat in asked]
    room = engine.body.parts.max_positions - max(map(len, shown))  # the end of a very long prompt is not read
    texts = [text_tokenizer.encode(prompt_text(message))[:room] for message in messages]
    likelihoods = engine.log_likelihoods(shown, texts)
    return [float(likelihood.exp().sum()) for likelihood in likelihoods]


def likely_codes(
    engine: Engine, text_tokenizer: TextTokenizer, codes: Sequence[Sequence[int]], messages: Sequence[Message]
) -> list[float]:
    """Returns the log-likelihood in nats of ids of codes after the message that asked for each picture."""
    asked = [render_prompt([message], text_tokenizer, engine.vocabulary) for message in messages]
    prompts = [[*prompt, engine.vocabulary.begin_picture] for prompt in asked]
    return engine.code_log_likelihoods(prompts, codes).sum(dim=1).tolist()


def best_drafts(scores: Sequence[float], numbers: Sequence[int]) -> list[int]:
    """Returns for each picture the index of its best draft, the first of equals.

    Args:
        scores: of all drafts, those of the first picture first.
        numbers: how many drafts each picture has, at least one.
    """
    assert sum(numbers) == len(scores)
    best, start = [], 0
    for number in numbers:
        best.append(max(range(start, start + number), key=scores.__getitem__))
        start += number
    return best
