"""Which id may follow which: the one state machine behind rendering, parsing, losses and constrained decoding.

A picture is ``begin_picture``, the size tokens of its rows and columns if there are pictures of several sizes, exactly
as many code ids as that size has, whose streams take turns, and ``end_picture``. Everything else is text or control.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from rebus.tokenizers.vocabulary import Vocabulary

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of ids, ascending."""


class State(NamedTuple):
    """What the grammar remembers of the ids so far."""

    inside: bool
    """Whether a picture is open."""
    num_codes: int
    """Codes read of the open picture; 0 outside."""
    size: tuple[int, ...] = ()
    """Rows and columns of the open picture, as far as they were said; never said if all pictures have one size."""


class TextSpan(NamedTuple):
    """A run ``ids[start:stop]`` of text and control ids outside pictures."""

    start: int
    stop: int


class PictureSpan(NamedTuple):
    """A whole picture ``ids[start:stop]``, from its ``begin_picture`` through its ``end_picture``."""

    start: int
    stop: int
    num_sizes: int = 0
    """Size tokens: 2, or none if all pictures have one size."""

    @property
    def content(self) -> slice:
        """Where the size tokens and the code ids are, without the two control tokens."""
        return slice(self.start + 1, self.stop - 1)

    @property
    def codes(self) -> slice:
        """Where the code ids are."""
        return slice(self.start + 1 + self.num_sizes, self.stop - 1)


class Grammar:
    """The rules of one vocabulary. ``advance`` and ``legal`` take constant time and allocate nothing."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._never = frozenset(vocabulary.special.all) - {vocabulary.bos, vocabulary.eos}
        """Text ids that no sample holds."""
        self._outside = State(False, 0)
        self._begun = State(True, 0)
        self._legal_outside = self._outside_ranges()
        self._legal_inside: dict[tuple[int, ...], tuple[Ranges, ...]] = {}
        """For each size, as far as it was said, what is legal after 0, 1, ... codes."""
        self._following: dict[tuple[int, ...], tuple[State, ...]] = {}
        """For each size that was said whole, the states after each of those ids."""
        self._sized: dict[tuple[int, ...], dict[int, State]] = {}
        """For each size that was not yet said whole, the state after each token that may say more of it."""
        for size in vocabulary.layout.grids or ((),):
            self._add_codes(size)
        for said in {size[:length] for size in vocabulary.layout.grids for length in (0, 1)}:
            self._add_sizes(said)

    def _add_codes(self, size: tuple[int, ...]) -> None:
        """Lays down what a picture of a size holds after its size tokens."""
        ids, num_streams = self.vocabulary, len(self.vocabulary.layout.streams)
        num_positions = prod(size) if size else ids.layout.num_positions
        streams = tuple((ids.code_range(stream),) for stream in range(num_streams))
        self._legal_inside[size] = (*streams * num_positions, ((ids.end_picture, ids.end_picture + 1),))
        codes = range(num_streams * num_positions)
        self._following[size] = (*(State(True, code + 1, size) for code in codes), self._outside)

    def _add_sizes(self, said: tuple[int, ...]) -> None:
        """Lays down which rows a picture may have, or which columns beside the rows that were said."""
        place, first = len(said), self.vocabulary.size_range[0]
        sides = sorted({grid[place] for grid in self.vocabulary.layout.grids if grid[:place] == said})
        self._legal_inside[said] = (tuple((first + side - 1, first + side) for side in sides),)
        self._sized[said] = {first + side - 1: State(True, 0, (*said, side)) for side in sides}

    def _outside_ranges(self) -> Ranges:
        ids = self.vocabulary
        pieces = [(before + 1, after) for before, after in pairwise((-1, *ids.special.all, ids.num_text))]
        ranges = sorted([*pieces, (ids.eos, ids.eos + 1), (ids.begin_picture, ids.begin_picture + 1)])
        return tuple((start, stop) for start, stop in ranges if start < stop)

    def start(self) -> State:
        """Returns the state before the first id."""
        return self._outside

    def advance(self, state: State, token: int) -> State:
        """Returns the state after ``token``; accepts whatever a rendered sample may hold.

        Outside a picture that is more than ``legal`` names: ``bos``, ``user`` and ``assistant`` as well.

        Raises:
            ValueError: if no rendered sample may hold ``token`` here.
        """
        if state.inside:
            if self._sized and state.size in self._sized:
                if token not in self._sized[state.size]:
                    raise ValueError(self._size_error(state, f"id {token}"))
                return self._sized[state.size][token]
            start, stop = self._legal_inside[state.size][state.num_codes][0]
            if not start <= token < stop:
                raise ValueError(self._code_error(state, token))
            return self._following[state.size][state.num_codes]
        ids = self.vocabulary
        if token == ids.begin_picture:
            return self._begun
        if token in (ids.user, ids.assistant) or (0 <= token < ids.num_text and token not in self._never):
            return state
        raise ValueError(f"outside a picture, an id must be text, user, assistant or begin_picture, got {token}")

    def _size_error(self, state: State, got: str) -> str:
        what = f"columns of a picture of {state.size[0]} rows" if state.size else "rows of a picture"
        allowed = {token: after.size[-1] for token, after in self._sized[state.size].items()}
        told = ", ".join(f"{side} (id {token})" for token, side in allowed.items())
        return f"{what} must be one of {told}, got {got}"

    def _code_error(self, state: State, token: int) -> str:
        num_codes, (start, stop) = self.num_picture_codes(state), self._legal_inside[state.size][state.num_codes][0]
        if token < self.vocabulary.control_range[1] and state.num_codes < num_codes:
            return f"picture must have {num_codes} codes, got {state.num_codes}"
        return f"id after {state.num_codes} of {num_codes} codes must lie in [{start}, {stop}), got {token}"

    def legal(self, state: State) -> Ranges:
        """Returns the half-open id ranges, ascending, that a model may generate next.

        Outside a picture: text without special ids but ``eos``; ``begin_picture``. Inside: the rows of
        some size, then the columns of one with these rows; or one range, that of the next code's stream, or
        ``end_picture`` after the last code.
        """
        return self._legal_inside[state.size][state.num_codes] if state.inside else self._legal_outside

    def num_picture_codes(self, state: State) -> int:
        """Returns how many codes the open picture has when it is whole; 0 outside, and until its size was said."""
        return len(self._legal_inside[state.size]) - 1 if state.inside else 0

    def codes_to_come(self, state: State) -> Ranges:
        """Returns the range of each code that the open picture still lacks, in order; none if its size was not said."""
        return tuple(one[0] for one in self._legal_inside[state.size][state.num_codes : -1]) if state.inside else ()

    def spans(self, ids: Sequence[int]) -> list[TextSpan | PictureSpan]:
        """Returns disjoint spans in order that together cover all ``ids``.

        Raises:
            ValueError: if an id is illegal where it stands or a picture is truncated.
        """
        spans: list[TextSpan | PictureSpan] = []
        state, start = self._outside, 0
        for index, token in enumerate(ids):
            before, state = state, self.advance(state, token)
            if state.inside and not before.inside:
                if start < index:
                    spans.append(TextSpan(start, index))
                start = index
            elif before.inside and not state.inside:
                spans.append(PictureSpan(start, index + 1, len(before.size)))
                start = index + 1
        if state.inside:
            if state.size in self._sized:
                raise ValueError(self._size_error(state, "none"))
            num_codes = self.num_picture_codes(state)
            got = f"{state.num_codes}" if state.num_codes < num_codes else "all but no end_picture"
            raise ValueError(f"picture must have {num_codes} codes, got {got}")
        if start < len(ids):
            spans.append(TextSpan(start, len(ids)))
        return spans

    def modality(self, ids: Sequence[int]) -> list[int]:
        """Returns 1 for every code id and 0 for text, control and sizes.

        Raises:
            ValueError: as ``spans``.
        """
        modality = [0] * len(ids)
        for span in self.spans(ids):
            if isinstance(span, PictureSpan):
                modality[span.codes] = [1] * (span.codes.stop - span.codes.start)
        return modality
