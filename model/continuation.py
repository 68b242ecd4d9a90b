"""What a row of a batch is asked to continue, how far it has come, and what is told of it on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.model.grammar import Grammar, Ranges
from rebus.model.guidance import Guidance
from rebus.model.sampling import Sampling
from rebus.model.token_reduction import TokenReduction
from rebus.tokenizers.tokens import Grid

Ending = Literal["eos", "limit", "not_a_number"]
EventKind = Literal["text", "picture_started", "picture_preview", "picture", "ended", "failed"]
"""What happens in a row; the last of each is that it has ended or failed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one row is to continue, and how far."""

    prompt: Sequence[int]
    """Ids to continue; its pictures are whole."""
    others: tuple[Sequence[int], ...] = ()
    """Prompts of the other branches that guidance asks for (``Guidance.num_others``)."""
    max_text_tokens: int
    """Most ids of text, ``eos`` among them."""
    num_pictures: int
    """Most pictures."""
    start_picture: bool = False
    """Whether the row begins with a picture."""
    picture_size: Grid | None = None
    """Rows and columns of its pictures; the model chooses if there are several sizes and none is asked for."""
    begun: Sequence[int] = ()
    """Code ids that the picture that it begins with has already; the others are as if it had drawn these itself."""
    leave_at: int | None = None
    """Codes at which that picture is left unfinished, and the row ends; it is finished by default."""
    seed: int = 0
    """Of its random draws."""
    features: tuple[Float[Tensor, "picture_positions feature_dim"] | None, ...] = ()
    """Of each picture of the prompt in turn, to be read in place of its codes, or None for its codes; none at all where
    codes are what is read. The other prompts show the same pictures from the first on, as many as they have."""

    def __post_init__(self) -> None:
        if not self.start_picture and (self.begun or self.leave_at is not None):
            raise ValueError("begun and leave_at must be left out of a row that begins with no picture, got them")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How all rows of a batch are continued."""

    text: Sampling = Sampling()
    """How ids outside pictures and the sizes of pictures are drawn; they are never guided."""
    picture: Sampling = Sampling()
    """How codes are drawn."""
    guidance: Guidance = Guidance()
    """Of codes."""
    guesses: int = 0
    """Codes that are guessed ahead and read in one pass, where a batch has one row and codes have one stream
    (``speculation.py``): the codes are others then, from the same distribution."""
    by_level: bool = False
    """Whether the codes of a level are drawn in one pass (``levels.py``), wherever all rows are at the same one."""
    reduction: TokenReduction | None = None
    """Of the pictures in prompts that the user shows."""

    def __post_init__(self) -> None:
        if self.guesses < 0:
            raise ValueError(f"guesses must be at least 0, got {self.guesses}")


@dataclass(frozen=True)
class Continuation:
    """What a row was continued with."""

    ids: list[int]
    """Whole pictures, and text; or a picture that was to be left unfinished."""
    ended: Ending
    """``eos`` is the last id; the request or the model has no room for more; or the model's logits made no sense, in
    which case a picture that was begun is not among the ids."""


@dataclass(frozen=True)
class Event:
    """Something new in a row."""

    row: int
    kind: EventKind
    ids: tuple[int, ...] = ()
    """New ids of text; the size, if it is said, and codes of the open picture so far; or the whole picture with its
    control tokens."""


class Row:
    """One continuation, what it may still hold, and what has not been told of it yet."""

    def __init__(self, index: int, grammar: Grammar, request: Request, room: int, *, codes_per_position: int = 1):
        """Begins a row.

        Args:
            index: its number.
            grammar: of its ids.
            request: what is to be continued.
            room: positions after its prompts.
            codes_per_position: how many codes of a picture share a position; every other id has one to itself.
        """
        self.index = index
        self.grammar, self.vocabulary = grammar, grammar.vocabulary
        self.prompt, self.room = request.prompt, room
        self.codes_per_position = codes_per_position
        self.text_left, self.pictures_left = request.max_text_tokens, request.num_pictures
        self.picture_length = self.vocabulary.picture_length(request.picture_size, codes_per_position)
        """Positions of the longest picture that may come."""
        size_ids = self.vocabulary.size_ids(request.picture_size)
        self._asked_size: tuple[Ranges, ...] = tuple(((token, token + 1),) for token in size_ids)
        self.generator = torch.Generator().manual_seed(request.seed)
        self.state = grammar.start()
        self.ids: list[int] = []
        self.ended: Ending | None = None
        self._begun = 0
        self._news: list[Event] = []
        self.leave_at = request.leave_at
        if request.start_picture:
            for token in (self.vocabulary.begin_picture, *size_ids, *request.begun):
                self.take(token)
            torch.rand(len(request.begun), generator=self.generator)  # spent on these codes
            self._check_end()
        elif min(self.text_left, self.room) < 1:
            self._end("limit")

    def _check_end(self) -> None:
        """Refuses to leave the picture that has been begun where it does not come."""
        begun, most = self.state.num_codes, self.grammar.num_picture_codes(self.state)
        if self.leave_at is not None and not begun < self.leave_at <= most:
            raise ValueError(f"leave_at must lie in [{begun + 1}, {most}], got {self.leave_at}")

    def legal(self) -> Ranges:
        """Returns the ids that may come next; none if the row has ended."""
        if self.ended is not None:
            return ()
        ranges = self.grammar.legal(self.state)
        if self.state.inside:
            num_said = len(self.state.size)
            return self._asked_size[num_said] if num_said < len(self._asked_size) else ranges
        if self.pictures_left and self.room >= self.picture_length:
            return ranges
        begin = self.vocabulary.begin_picture
        return tuple(one for one in ranges if one != (begin, begin + 1))

    def most_to_come(self) -> int:
        """Returns how many positions the row may still have at most."""
        num_codes = self.state.num_codes
        begun = len(self.ids) - self._begun - num_codes + num_codes // self.codes_per_position
        open_picture = self.picture_length - begun if self.state.inside else 0
        later = self.pictures_left * self.picture_length + self.text_left
        return 0 if self.ended else min(self.room, open_picture + later)

    def take(self, token: int) -> None:
        """Appends an id, after which the row may have ended."""
        before, self.state = self.state, self.grammar.advance(self.state, token)
        self.ids.append(token)
        if before.num_codes % self.codes_per_position == 0:  # not a further code of a position
            self.room -= 1
        if token == self.vocabulary.begin_picture:
            self.pictures_left -= 1
            self._begun = len(self.ids) - 1
            self._tell("picture_started")
        elif not before.inside:
            self.text_left -= 1
            self._tell("text", token)
        elif not self.state.inside:
            self._tell("picture", *self.ids[self._begun :])
        if token == self.vocabulary.eos:
            self._end("eos")
        elif not self.state.inside and min(self.text_left, self.room) < 1:
            self._end("limit")
        elif self.state.num_codes == self.leave_at:
            self._end("limit")

    def newest(self) -> list[int]:
        """Returns the ids at the newest position; none if there is none yet."""
        is_code = bool(self.ids) and self.ids[-1] >= self.vocabulary.control_range[1]
        return self.ids[-self.codes_per_position if is_code else -1 :]

    def fail(self) -> None:
        """Ends the row before the picture that it may be in."""
        if self.state.inside:
            del self.ids[self._begun :]
        self._end("not_a_number")

    def preview(self) -> None:
        """Tells what there is of the open picture, if any of its codes are."""
        if self.state.inside and self.state.num_codes:
            self._tell("picture_preview", *self.ids[self._begun + 1 :])

    def news(self) -> list[Event]:
        """Returns what has happened since it was last asked."""
        news, self._news = self._news, []
        return news

    def _tell(self, kind: EventKind, *ids: int) -> None:
        self._news.append(Event(self.index, kind, ids))

    def _end(self, ended: Ending) -> None:
        self.ended = ended
        self._tell("failed" if ended == "not_a_number" else "ended")
