"""Which id may follow which: the one state machine behind rendering, parsing, losses and constrained decoding.

A picture is ``begin_picture``, exactly ``num_codes`` code ids whose streams take turns, ``end_picture``. Everything
else is text or control.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rebus.tokenizers.vocabulary import Vocabulary


class State(NamedTuple):
    """What the grammar remembers of the ids so far."""

    inside: bool
    """Whether a picture is open."""
    num_codes: int
    """Codes read of the open picture; 0 outside."""


class TextSpan(NamedTuple):
    """A run ``ids[start:stop]`` of text and control ids outside pictures."""

    start: int
    stop: int


class PictureSpan(NamedTuple):
    """A whole picture ``ids[start:stop]``, from its ``begin_picture`` through its ``end_picture``."""

    start: int
    stop: int

    @property
    def codes(self) -> slice:
        """Where the code ids are, without the two control tokens."""
        return slice(self.start + 1, self.stop - 1)


class Grammar:
    """The rules of one vocabulary. ``advance`` and ``legal`` take constant time and allocate nothing."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        num_codes, num_streams = vocabulary.num_codes, len(vocabulary.layout.streams)
        self._outside = State(False, 0)
        self._inside = tuple(State(True, index) for index in range(num_codes + 1))
        end_picture = (vocabulary.end_picture, vocabulary.end_picture + 1)
        streams = [(vocabulary.code_range(index % num_streams),) for index in range(num_codes)]
        self._legal_inside = (*streams, (end_picture,))
        self._legal_outside = self._outside_ranges()

    def _outside_ranges(self) -> tuple[tuple[int, int], ...]:
        ids = self.vocabulary
        pieces = (ids.pad + 1, ids.num_text)
        ranges = ((ids.eos, ids.eos + 1), pieces, (ids.begin_picture, ids.begin_picture + 1))
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
            start, stop = self._legal_inside[state.num_codes][0]
            if not start <= token < stop:
                raise ValueError(self._inside_error(state, token))
            return self._outside if state.num_codes == self.vocabulary.num_codes else self._inside[state.num_codes + 1]
        ids = self.vocabulary
        if token == ids.begin_picture:
            return self._inside[0]
        if token in (ids.user, ids.assistant) or (0 <= token < ids.num_text and token not in (ids.unk, ids.pad)):
            return state
        raise ValueError(f"outside a picture, an id must be text, user, assistant or begin_picture, got {token}")

    def _inside_error(self, state: State, token: int) -> str:
        num_codes, (start, stop) = self.vocabulary.num_codes, self._legal_inside[state.num_codes][0]
        if token < self.vocabulary.control_range[1] and state.num_codes < num_codes:
            return f"picture must have {num_codes} codes, got {state.num_codes}"
        return f"id after {state.num_codes} of {num_codes} codes must lie in [{start}, {stop}), got {token}"

    def legal(self, state: State) -> tuple[tuple[int, int], ...]:
        """Returns the half-open id ranges, ascending, that a model may generate next.

        Outside a picture: text without ``unk``, ``bos`` and ``pad``; ``eos``; ``begin_picture``. Inside: one range,
        that of the next code's stream, or ``end_picture`` after the last code.
        """
        return self._legal_inside[state.num_codes] if state.inside else self._legal_outside

    def codes_to_come(self, state: State) -> tuple[tuple[int, int], ...]:
        """Returns the range of each code that the open picture still lacks, in order; none outside a picture."""
        return tuple(ranges[0] for ranges in self._legal_inside[state.num_codes : -1]) if state.inside else ()

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
                spans.append(PictureSpan(start, index + 1))
                start = index + 1
        if state.inside:
            got = f"{state.num_codes}" if state.num_codes < self.vocabulary.num_codes else "all but no end_picture"
            raise ValueError(f"picture must have {self.vocabulary.num_codes} codes, got {got}")
        if start < len(ids):
            spans.append(TextSpan(start, len(ids)))
        return spans

    def modality(self, ids: Sequence[int]) -> list[int]:
        """Returns 1 for every code id and 0 for text and control.

        Raises:
            ValueError: as ``spans``.
        """
        modality = [0] * len(ids)
        for span in self.spans(ids):
            if isinstance(span, PictureSpan):
                modality[span.codes] = [1] * self.vocabulary.num_codes
        return modality
