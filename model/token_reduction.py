"""Fewer codes of the pictures in a prompt: a language model that only answers about a picture need not read all of it.

There are three hooks. Before the model, the codes of a picture are selected or merged; inside it, codes that nothing
looks at are left behind after a block; and those that stay keep their positions or close ranks. Only pictures that the
user shows are reduced: what the model drew itself it goes on to see whole.

Sources: Cai et al., "Matryoshka Multimodal Models", https://arxiv.org/abs/2405.17430 (the first codes); Alvar et al.,
"DivPrune", https://arxiv.org/abs/2503.02175, sec. 3 (diversity); Bolya et al., "Token Merging: Your ViT But Faster",
https://arxiv.org/abs/2210.09461, sec. 3 (merging); Chen et al., "An Image is Worth 1/2 Tokens After Layer 2",
https://arxiv.org/abs/2403.06764, sec. 4 (attention).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rebus.model.grammar import Grammar, PictureSpan


@dataclass(frozen=True, kw_only=True)
class FirstCodes:
    """Only the first codes of a picture are read, as suits a layout of which any prefix decodes."""

    num_codes: int
    """Codes of a picture that are read."""
    keep_positions: bool = True
    """Whether what follows has the positions that it would have if no code were missing."""

    def __post_init__(self) -> None:
        _check_number(self.num_codes)

    def select(self, codes: Float[Tensor, "codes dim"]) -> "Selected":
        """Returns the embeddings that are read instead of those of a picture's codes."""
        return Selected(codes[: self.num_codes], torch.arange(min(self.num_codes, len(codes))))


@dataclass(frozen=True, kw_only=True)
class DiverseCodes:
    """Codes that are unlike one another are read: each is the one farthest from those before it, by cosine."""

    num_codes: int
    """Codes of a picture that are read."""
    keep_positions: bool = True
    """Whether ids that stay have the positions that they would have if no code were missing."""

    def __post_init__(self) -> None:
        _check_number(self.num_codes)

    def select(self, codes: Float[Tensor, "codes dim"]) -> "Selected":
        """Returns the embeddings that are read instead of those of a picture's codes."""
        directions = F.normalize(codes.float(), dim=-1)
        distances = 1 - directions @ directions.T
        nearest = distances.masked_fill(torch.eye(len(codes), dtype=torch.bool, device=codes.device), 2.0).amin(dim=1)
        chosen = [int(nearest.argmax())]  # as in the paper: first the one whose nearest other is farthest
        nearest = distances[chosen[0]]
        while len(chosen) < min(self.num_codes, len(codes)):
            left = nearest.clone()
            left[chosen] = -1
            chosen.append(int(left.argmax()))
            nearest = torch.minimum(nearest, distances[chosen[-1]])
        places = torch.tensor(sorted(chosen))
        return Selected(codes[places], places)


@dataclass(frozen=True, kw_only=True)
class MergedCodes:
    """Like codes are merged into their mean, half of what is too many at a time at most.

    The codes at even places are each matched with the likest of those at odd places, and the likest pairs merge.
    """

    num_codes: int
    """Embeddings of a picture that are read."""
    keep_positions: bool = True
    """Whether ids that stay have the positions that they would have if no code were missing."""

    def __post_init__(self) -> None:
        _check_number(self.num_codes)

    def select(self, codes: Float[Tensor, "codes dim"]) -> "Selected":
        """Returns the embeddings that are read instead of those of a picture's codes."""
        places, sizes = torch.arange(len(codes)), torch.ones(len(codes), device=codes.device)
        while len(codes) > self.num_codes:
            directions = F.normalize(codes.float(), dim=-1)
            likeness, partner = (directions[::2] @ directions[1::2].T).max(dim=1)
            number = min(len(codes) - self.num_codes, len(likeness))
            merging = likeness.topk(number).indices
            target = 2 * partner[merging] + 1
            weighted = (codes * sizes[:, None]).index_add(0, target, codes[2 * merging] * sizes[2 * merging, None])
            sizes = sizes.index_add(0, target, sizes[2 * merging])
            stay = torch.ones(len(codes), dtype=torch.bool)
            stay[2 * merging.cpu()] = False
            codes, sizes, places = (weighted / sizes[:, None])[stay].to(codes.dtype), sizes[stay], places[stay]
        return Selected(codes, places)


@dataclass(frozen=True, kw_only=True)
class AttendedCodes:
    """After some blocks only the codes stay that the last id of the prompt looks at most."""

    num_codes: int
    """Codes of a picture that stay."""
    num_blocks: int = 2
    """Blocks that read them all."""

    def __post_init__(self) -> None:
        _check_number(self.num_codes)
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {self.num_blocks}")

    def drop(self, attention: Float[Tensor, " codes"]) -> Int[Tensor, " dropped"]:
        """Returns the places of the codes that go, given how much the last id looks at each."""
        number = max(0, len(attention) - self.num_codes)
        return attention.topk(number, largest=False).indices


TokenReduction = FirstCodes | DiverseCodes | MergedCodes | AttendedCodes


class Selected(NamedTuple):
    """What is read of a picture."""

    codes: Float[Tensor, "kept dim"]
    """Embeddings."""
    places: Int[Tensor, " kept"]
    """Where they stood among the codes, ascending."""


class PromptRow(NamedTuple):
    """A prompt as it is read."""

    embeddings: Float[Tensor, "length dim"]
    positions: Int[Tensor, " length"]
    pictures: tuple[slice, ...]
    """Where the codes of the user's pictures are."""


def prompt_row(
    ids: Sequence[int],
    begun: Sequence[int],
    embeddings: Float[Tensor, "ids dim"],
    grammar: Grammar,
    reduction: TokenReduction,
) -> PromptRow:
    """Returns a prompt whose pictures of the user are reduced, as far as that is done before the model.

    Args:
        ids: of the prompt.
        begun: those of the answer that are given.
        embeddings: of all ids.
        grammar: finds the pictures.
        reduction: how they are reduced.
    """
    device = embeddings.device
    positions, parts, pictures, read = [], [], [], 0
    for span, is_users in _spans(ids, grammar):
        codes = embeddings[torch.tensor([*ids, *begun][span], device=device)]
        places = torch.arange(len(codes))
        if is_users and not isinstance(reduction, AttendedCodes):
            codes, places = reduction.select(codes)
        if is_users:
            pictures.append(slice(read, read + len(codes)))
        positions.append(places + span.start)
        parts.append(codes)
        read += len(codes)
    kept = torch.cat(positions)
    if not isinstance(reduction, AttendedCodes) and not reduction.keep_positions:
        kept = torch.arange(len(kept))
    return PromptRow(torch.cat(parts), kept.to(device), tuple(pictures))


def _spans(ids: Sequence[int], grammar: Grammar) -> Iterator[tuple[slice, bool]]:
    """Yields slices that together cover a prompt, and whether each is the codes of a picture that the user shows."""
    vocabulary, start, speaker = grammar.vocabulary, 0, None
    for span in grammar.spans(ids):
        if isinstance(span, PictureSpan) and speaker == vocabulary.user:
            yield slice(start, span.codes.start), False
            yield span.codes, True
            start = span.codes.stop
        elif not isinstance(span, PictureSpan):
            speakers = [
                token for token in ids[span.start : span.stop] if token in (vocabulary.user, vocabulary.assistant)
            ]
            speaker = speakers[-1] if speakers else speaker
    yield slice(start, None), False


def _check_number(num_codes: int) -> None:
    if num_codes < 1:
        raise ValueError(f"num_codes must be at least 1, got {num_codes}")
