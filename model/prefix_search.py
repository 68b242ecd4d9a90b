"""Searches for the codes of a picture: drafts are judged while they are written, and the others follow the best.

All drafts of a picture are written side by side. At some of their positions a verifier looks at each, painted from the
codes that it has so far, and those that are not kept take over the codes of those that are; from there on each draws by
its own random numbers again. Without such a choice on the way it is best of N, with it beam search. In a lookahead
search each draft is written on before it is judged, and what was ahead is drawn anew.

Source: Rezaei et al., "(1D) Ordered Tokens Enable Efficient Test-Time Search", https://arxiv.org/abs/2604.15453; beam
and lookahead search with a verifier as in Snell et al., "Scaling LLM Test-Time Compute Optimally Can Be More Effective
than Scaling Model Parameters", https://arxiv.org/abs/2408.03314.
Differs: a draft that is kept goes on by its own random numbers, so what it came to when looking ahead stays among the
drafts; and the model that draws is the verifier if no other is given, as in ``drafts.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isnan
from typing import Any

import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from rebus.data.samples import Message
from rebus.model.drafts import CODES_SHARE, best_drafts, draft_seed, likely_codes, read_back
from rebus.model.drawing import DrawingSettings, picture_seeds
from rebus.model.rebus import Rebus
from rebus.model.writing import MOST_ROWS
from rebus.tokenizers.tokens import Tokens

Verifier = Callable[[Sequence[str], Sequence[Image.Image]], Sequence[float]]
"""Says of prompts, and of a picture for each, how well it shows what was asked for: more is better."""


@dataclass(frozen=True, kw_only=True)
class PrefixSearch:
    """How the codes of a picture are searched for; by default as best of ``drafts``."""

    drafts: int
    """Drafts of each picture, written side by side."""
    kept: int = 1
    """Drafts that are kept at each choice on the way; the others go on from their codes, in turn."""
    choose_at: tuple[int, ...] = ()
    """Positions after which is chosen, ascending; at the end one of the whole pictures is chosen in any case."""
    ahead: int = 0
    """Further positions that are drawn for each choice, as far as there are so many."""

    def __post_init__(self) -> None:
        if self.drafts < 1:
            raise ValueError(f"drafts must be at least 1, got {self.drafts}")
        if not 1 <= self.kept <= self.drafts:
            raise ValueError(f"kept must lie in [1, {self.drafts}], got {self.kept}")
        if any(one >= other for one, other in pairwise((0, *self.choose_at))):
            raise ValueError(f"choose_at must be positions of 1 and more, ascending, got {self.choose_at}")
        if self.ahead < 0:
            raise ValueError(f"ahead must be at least 0, got {self.ahead}")
        if not self.choose_at and (self.kept > 1 or self.ahead):
            got = f"{self.kept} and {self.ahead}"
            raise ValueError(f"kept and ahead must be 1 and 0 where nothing is chosen on the way, got {got}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """What a search has found, and what it took for all pictures together."""

    tokens: Tokens
    """The best codes for each prompt."""
    num_codes: int
    """Codes that the language model drew, without those that only guidance read."""
    num_paintings: int
    """Pictures that the image tokenizer's decoder painted to be judged."""
    num_readings: int
    """Drafts that were judged."""


def search(
    model: Rebus,
    prompts: Sequence[str],
    how: PrefixSearch,
    *,
    seed: int | Sequence[int] = 0,
    verifier: Verifier | None = None,
    **settings: Any,
) -> Searched:
    """Returns the codes of a picture for each prompt, for ``Rebus.paint``; batches do not change them.

    Without choices on the way and with the model as its own verifier, they are those of ``Rebus.draw(best_of=...)``.

    Args:
        model: draws, and reads what was drawn.
        prompts: one or several.
        how: drafts and choices.
        seed: of each picture, or of the first, from which the others count on.
        verifier: what judges; by default the model, by how much of the prompt it reads in a draft and by how likely the
            draft's codes are.
        settings: fields of ``DrawingSettings`` about codes that shall differ from the model's own; the number of drafts
            is that of the search.

    Raises:
        ValueError: if a prompt is empty or too long, a setting is out of range, the model's pictures have several
            sizes, or a choice comes after the last code.
    """
    chosen = replace(model.saved.settings, **settings)
    _check(model, how, chosen)
    messages = model.check(prompts)
    seeds = picture_seeds(seed, len(messages))
    under_way, size = _Search(model, how, chosen, verifier), max(1, MOST_ROWS // how.drafts)
    parts = [slice(start, start + size) for start in range(0, len(messages), size)]
    return Searched(
        tokens=Tokens.cat([under_way.best(messages[part], seeds[part]) for part in parts]),
        num_codes=under_way.num_codes,
        num_paintings=under_way.num_paintings,
        num_readings=under_way.num_readings,
    )


class _Search:
    """A search under way, and what it took so far."""

    def __init__(self, model: Rebus, how: PrefixSearch, settings: DrawingSettings, verifier: Verifier | None) -> None:
        self.model, self.how, self.verifier = model, how, verifier
        self.decoding = settings.decoding()
        self.vocabulary = model.saved.vocabulary
        self.num_codes = self.num_paintings = self.num_readings = 0

    def best(self, messages: Sequence[Message], seeds: Sequence[int]) -> Tokens:
        """Returns the best codes for each message, all of which are drawn as one batch."""
        how, num_streams = self.how, len(self.vocabulary.layout.streams)
        asked = [message for message in messages for _ in range(how.drafts)]
        each = [draft_seed(seed, draft) for seed in seeds for draft in range(how.drafts)]
        whole, drawn = self.vocabulary.num_codes, [[] for _ in asked]
        for position in how.choose_at:
            stop = min(whole, (position + how.ahead) * num_streams)
            drawn = self._drawn(asked, drawn, stop, each, keep=True)
            if how.kept < how.drafts:
                followed = _followed(self._scores(asked, drawn), how.drafts, how.kept)
                drawn = [drawn[index] for index in followed]
            drawn = [codes[: position * num_streams] for codes in drawn]
        drawn = self._drawn(asked, drawn, whole, each, keep=False)
        scores = self._scores(asked, drawn) if how.drafts > 1 else [0.0] * len(drawn)
        best = best_drafts(scores, [how.drafts] * len(messages))
        return self._tokens([drawn[index] for index in best])

    def _drawn(
        self, asked: Sequence[Message], begun: Sequence[list[int]], stop: int, seeds: Sequence[int], *, keep: bool
    ) -> list[list[int]]:
        """Returns drafts with so many codes as ``stop`` says."""
        self.num_codes += sum(stop - len(codes) for codes in begun)
        return self.model.writer.draw_on(asked, begun, stop, self.decoding, seeds, keep=keep)

    def _scores(self, asked: Sequence[Message], drawn: Sequence[list[int]]) -> Sequence[float]:
        """Returns how good drafts of one length are."""
        self.num_readings += len(drawn)
        tokens, writer = self._tokens(drawn), self.model.writer
        if self.verifier is not None:
            prompts = [part for message in asked for part in message.parts if isinstance(part, str)]
            pictures = rearrange(self._painted(tokens), "batch rgb height width -> batch height width rgb").cpu()
            scores = self.verifier(prompts, [Image.fromarray(one.numpy()) for one in pictures])
            if len(scores) != len(drawn) or any(map(isnan, scores)):
                raise ValueError(f"verifier must give a number for each of {len(drawn)} pictures, got {scores}")
            return scores
        if len(drawn[0]) < self.vocabulary.num_codes:  # what is no whole picture is looked at as any other would be
            tokens = self.model.image_tokenizer.encode(self._painted(tokens)).to("cpu")
        shown = [tokens.row(row) for row in range(len(drawn))]
        told = read_back(writer.engine, writer.text_tokenizer, self.model.saved.caption_request, shown, asked)
        likely = likely_codes(writer.engine, writer.text_tokenizer, drawn, asked)
        return [one + CODES_SHARE * other for one, other in zip(told, likely, strict=True)]

    def _painted(self, tokens: Tokens) -> UInt8[Tensor, "batch 3 height width"]:
        """Returns what there is of pictures, as ``Rebus.preview`` shows it: gray where codes lack that have a place."""
        self.num_paintings += len(tokens.lengths)
        return (self.model.image_tokenizer.decode(tokens.to(self.model.device)) * 255).round().to(torch.uint8)

    def _tokens(self, drawn: Sequence[list[int]]) -> Tokens:
        return Tokens.cat([self.vocabulary.unflatten(codes, whole=False) for codes in drawn])


def _followed(scores: Sequence[float], number: int, kept: int) -> list[int]:
    """Returns for each draft the index of that whose codes it goes on from: its own if it is among the best.

    Args:
        scores: of all drafts, those of the first picture first.
        number: drafts of each picture.
        kept: of these, those that are kept; of equals the first.
    """
    followed = list(range(len(scores)))
    for start in range(0, len(scores), number):
        order = sorted(range(start, start + number), key=lambda index: -scores[index])
        for turn, index in enumerate(sorted(order[kept:])):
            followed[index] = order[turn % kept]
    return followed


def _check(model: Rebus, how: PrefixSearch, settings: DrawingSettings) -> None:
    """Refuses what cannot be searched for."""
    layout = model.saved.vocabulary.layout
    if layout.grids:
        raise ValueError(f"pictures of a search must all have one size, got a model of the sizes {layout.grids}")
    if how.choose_at and how.choose_at[-1] >= layout.num_positions:
        last = layout.num_positions - 1
        raise ValueError(f"choose_at must be among the positions 1 to {last}, got {how.choose_at}")
    if settings.guesses or settings.by_level:  # which draw several codes at once, by random numbers of their own
        got = f"{settings.guesses} and {settings.by_level}"
        raise ValueError(f"guesses and by_level must be 0 and False in a search, got {got}")
