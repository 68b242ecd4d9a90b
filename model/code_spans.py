"""Draws and reads codes of all rows of a batch at once, instead of one code and one call after the other.

Where every row is at the same code of a picture, what is left of it is drawn without asking the grammar in between: in
C++ or in torch, level by level where a layout has levels (``levels.py``), or by guessing codes ahead
(``speculation.py``).
"""

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from rebus.model.cached_llama import CachedLlama
from rebus.model.cached_rows import CachedRows
from rebus.model.continuation import Decoding, Row
from rebus.model.grammar import Grammar, Ranges, State
from rebus.model.sampling import Sampling
from rebus.model.speculation import Speculation


class CodeSpans:
    """Draws codes in runs.

    Args:
        body: the model.
        grammar: of its ids.
    """

    def __init__(self, body: CachedLlama, grammar: Grammar):
        self.body, self.grammar, self.vocabulary = body, grammar, grammar.vocabulary

    def draw(self, rows: list[Row], cache: CachedRows, decoding: Decoding, most: int | None) -> bool:
        """Lets the rows draw and read the codes to come at once, if that can be: where every row is at the same one.

        Returns whether it was so.
        """
        going = [row for row in rows if row.legal()]
        places = {row.state for row in going}
        state = places.pop()
        stops = [row.leave_at - state.num_codes for row in going if row.leave_at is not None]
        most = min(stops if most is None else [*stops, most], default=None)
        ranges = () if places else self.grammar.codes_to_come(state)[:most]
        if not ranges or decoding.picture.repetition_penalty != 1:
            return False
        if decoding.by_level:
            return self._draw_level(rows, cache, decoding, state)
        if decoding.guesses and len(rows) == len(self.vocabulary.layout.streams) == 1:
            self._guess_codes(rows[0], cache, decoding, ranges)
            return True
        first, num_codes = state.num_codes, self.grammar.num_picture_codes(state)
        weights = [decoding.guidance.weights(code, num_codes) for code in range(first, first + len(ranges))]
        uniforms = torch.stack([torch.rand(len(ranges), generator=row.generator) for row in rows], dim=1)
        if cache.is_native:
            codes = cache.draw(ranges, torch.tensor(weights), decoding.picture, uniforms)
        else:
            codes = self._draw_each(cache, ranges, weights, decoding.picture, uniforms)
        _take(rows, codes.T)
        return True

    def _draw_each(
        self,
        cache: CachedRows,
        ranges: Ranges,
        weights: Sequence[tuple[float, ...]],
        sampling: Sampling,
        uniforms: Float[Tensor, "codes rows"],
    ) -> Int[Tensor, "codes rows"]:
        """Draws and reads one code of each range after the other; returns them, -1 where logits were no numbers."""
        uniforms, codes = uniforms.to(cache.last.device), []
        for (start, stop), branches, uniform in zip(ranges, weights, uniforms, strict=True):
            hidden = rearrange(cache.last, "(branches rows) dim -> branches rows dim", branches=len(branches))
            logits = self.body.guided_logits(hidden, branches, start, stop)
            chosen = self.body.choose(logits, sampling, uniform) + start
            codes.append(chosen.masked_fill(~(logits < float("inf")).all(dim=-1), -1))
            cache.read(chosen.repeat(len(branches)).unsqueeze(1))
        return torch.stack(codes).cpu()

    def _guess_codes(self, row: Row, cache: CachedRows, decoding: Decoding, ranges: Ranges) -> None:
        """Lets the only row draw and read codes, several in a pass."""
        starts, num_codes = [start for start, _ in ranges], self.grammar.num_picture_codes(row.state)
        try:
            codes = self.speculation(cache, decoding, row.generator, num_codes).draw(starts, row.state.num_codes)
        except ArithmeticError:
            return row.fail()
        for code, start in zip(codes, starts, strict=True):
            row.take(start + code)

    def speculation(
        self, cache: CachedRows, decoding: Decoding, generator: torch.Generator, num_codes: int
    ) -> Speculation:
        """Returns what guesses the codes of one stream ahead, for one row whose branches are those of a cache.

        Args:
            cache: has read all that comes before the codes.
            decoding: how they are drawn.
            generator: of all random draws.
            num_codes: codes of the whole picture.
        """
        start, stop = self.vocabulary.code_range(0)

        def logits(hidden: Float[Tensor, "branches codes dim"], first: int) -> Float[Tensor, "codes ids"]:
            places = range(first, first + hidden.shape[1])
            weights = [decoding.guidance.weights(place, num_codes) for place in places]
            return self._mixed(hidden, (start, stop), weights)[0]

        return Speculation(cache, logits, decoding.picture, generator, decoding.guesses)

    def _draw_level(self, rows: list[Row], cache: CachedRows, decoding: Decoding, state: State) -> bool:
        """Lets all rows draw and read the codes of a level, for which queries ask, if one begins here."""
        starts, num_codes = self.vocabulary.level_starts, self.vocabulary.num_codes
        if state.num_codes not in starts:
            return False
        codes = range(state.num_codes, starts[starts.index(state.num_codes) + 1])
        queries = torch.full((len(cache.ids), len(codes)), self.vocabulary.begin_picture, device=cache.last.device)
        cache.read(queries)
        cache.forget(len(codes))
        uniforms = torch.stack([torch.rand(len(codes), generator=row.generator) for row in rows])
        drawn, num_streams = torch.empty(uniforms.shape, dtype=torch.int64), len(self.vocabulary.layout.streams)
        for stream in range(num_streams):  # a level begins with stream 0
            places, (first, stop) = slice(stream, None, num_streams), self.vocabulary.code_range(stream)
            weights = [decoding.guidance.weights(code, num_codes) for code in codes[places]]
            logits = self._mixed(cache.hidden[:, places], (first, stop), weights, len(rows))
            flat = rearrange(logits, "rows codes ids -> (rows codes) ids")
            chosen = self.body.choose(flat, decoding.picture, uniforms[:, places].flatten()) + first
            failed = (~(flat < float("inf"))).any(dim=-1)
            drawn[:, places] = chosen.masked_fill(failed, -1).cpu().unflatten(0, logits.shape[:2])
        cache.read(drawn.clamp_min(0).to(cache.last.device).repeat(len(cache.ids) // len(rows), 1))
        _take(rows, drawn)
        return True

    def _mixed(
        self,
        hidden: Float[Tensor, "batch codes dim"],
        ids: tuple[int, int],
        weights: Sequence[tuple[float, ...]],
        num_rows: int = 1,
    ) -> Float[Tensor, "rows codes ids"]:
        """Returns the logits of several codes of each row, the branches of each code by its own weights."""
        each = self.body.logits(rearrange(hidden, "batch codes dim -> (batch codes) dim"), *ids)
        branches = rearrange(
            each, "(branches rows codes) ids -> branches rows codes ids", rows=num_rows, codes=hidden.shape[1]
        )
        pattern = "branches rows codes ids, codes branches -> rows codes ids"
        return einsum(branches, torch.tensor(weights).to(each), pattern)


def _take(rows: list[Row], codes: Int[Tensor, "rows codes"]) -> None:
    """Gives rows their next codes; one that has a -1 among them fails there."""
    for row, chosen in zip(rows, codes.tolist(), strict=True):
        for token in chosen:
            if row.legal():
                row.take(token) if token >= 0 else row.fail()
