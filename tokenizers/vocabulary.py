"""One id space for text and pictures: ``[text pieces][control][sizes][stream 0 codes][stream 1 codes]...``.

Picture ids are always computed as ``first id of the stream + code``. They never pass through strings, so that text
which spells the name of a code or of a control token stays text.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import torch
from einops import rearrange

from rebus.tokenizers.tokens import CodeLayout, Grid, Tokens


@dataclass(frozen=True)
class SpecialIds:
    """Ids among the text pieces that text never becomes; by default those of the project's own text tokenizer."""

    unk: int | None = 0
    """Of what has no piece, if there is such an id."""
    bos: int = 1
    """Opens a sample."""
    eos: int = 2
    """Closes a message."""
    pad: int = 3
    """Fills up rows; nothing looks at it, so it may be another of these."""
    others: tuple[int, ...] = ()
    """Further ones, which a pretrained tokenizer has and nothing here uses."""

    @cached_property
    def all(self) -> tuple[int, ...]:
        """All of them, ascending."""
        unk = () if self.unk is None else (self.unk,)
        return tuple(sorted({*unk, self.bos, self.eos, self.pad, *self.others}))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**asdict(self), "others": list(self.others)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SpecialIds":
        """Returns what ``to_dict`` wrote; what is missing is as in the project's own text tokenizer."""
        return cls(**{**values, "others": tuple(values.get("others", ()))})


@dataclass(frozen=True)
class Vocabulary:
    """The ids that a language model reads and writes.

    The attributes named after a token are its id. ``unk``, ``bos``, ``eos`` and ``pad`` are among the text pieces;
    ``begin_picture``, ``end_picture``, ``user`` and ``assistant`` are the control tokens, in this order. Only if
    pictures may have several grids, there are size tokens, too: one for each number that rows or columns may be.
    """

    control_names: ClassVar[tuple[str, ...]] = ("<|picture|>", "<|/picture|>", "<|user|>", "<|assistant|>")

    num_text: int
    """Pieces of the text tokenizer, with the special ones."""
    layout: CodeLayout
    """Codes of one picture."""
    special: SpecialIds = SpecialIds()
    """Which of the text pieces are special."""

    def __post_init__(self):
        if self.num_text <= self.special.all[-1]:
            raise ValueError(f"num_text must be at least {self.special.all[-1] + 1}, got {self.num_text}")

    @property
    def unk(self) -> int | None:
        """Stands for what has no piece; no sample holds it."""
        return self.special.unk

    @property
    def bos(self) -> int:
        """Opens a sample."""
        return self.special.bos

    @property
    def eos(self) -> int:
        """Closes a message, and a document."""
        return self.special.eos

    @property
    def pad(self) -> int:
        """Fills up rows."""
        return self.special.pad

    @cached_property
    def begin_picture(self) -> int:
        """Opens a picture."""
        return self.num_text

    @cached_property
    def end_picture(self) -> int:
        """Closes a picture after its last code."""
        return self.num_text + 1

    @cached_property
    def user(self) -> int:
        """Opens a message of the user."""
        return self.num_text + 2

    @cached_property
    def assistant(self) -> int:
        """Opens a message of the assistant."""
        return self.num_text + 3

    @property
    def text_range(self) -> tuple[int, int]:
        """Half-open range of the text pieces."""
        return 0, self.num_text

    @property
    def control_range(self) -> tuple[int, int]:
        """Half-open range of the control tokens, with the size tokens."""
        return self.num_text, self.size_range[1]

    @cached_property
    def size_range(self) -> tuple[int, int]:
        """Half-open range of the size tokens 1, 2, ...; empty if all pictures have one size."""
        start = self.num_text + len(self.control_names)
        return start, start + max((side for grid in self.layout.grids for side in grid), default=0)

    def size_ids(self, size: Grid | None) -> tuple[int, ...]:
        """Returns the tokens of a picture's rows and columns; none if all pictures have one size."""
        return tuple(self.size_range[0] + side - 1 for side in size or ()) if self.layout.grids else ()

    def code_range(self, stream: int) -> tuple[int, int]:
        """Returns the half-open range of a stream's codes."""
        return self._code_ranges[stream]

    @cached_property
    def size(self) -> int:
        """Number of ids."""
        return self._code_ranges[-1][1]

    @cached_property
    def num_codes(self) -> int:
        """Code ids of one whole picture, of the largest if there are several sizes."""
        return self.layout.num_positions * len(self.layout.streams)

    @cached_property
    def level_starts(self) -> list[int]:
        """The number of codes before each level, and of all."""
        return [len(self.layout.streams) * start for start in accumulate(self.layout.levels, initial=0)]

    def picture_length(self, size: Grid | None = None, codes_per_position: int = 1) -> int:
        """Returns what a whole picture takes up in a sequence, with its control and size tokens.

        Args:
            size: of the picture; the largest by default.
            codes_per_position: 1 where every id has a position of its own.

        Raises:
            ValueError: if no picture has that size.
        """
        num_codes = self.layout.num_positions_of(size) * len(self.layout.streams)
        return num_codes // codes_per_position + (4 if self.layout.grids else 2)

    @cached_property
    def _code_ranges(self) -> tuple[tuple[int, int], ...]:
        ranges = []
        start = self.control_range[1]
        for stream in self.layout.streams:
            ranges.append((start, start + stream.size))
            start += stream.size
        return tuple(ranges)

    def names_beyond_text(self) -> list[str]:
        """Returns the names of all control tokens, sizes and codes, in the order of their ids."""
        codes = [f"<|{stream.name}:{code}|>" for stream in self.layout.streams for code in range(stream.size)]
        return [*self.control_names, *self.size_names, *codes]

    @property
    def size_names(self) -> list[str]:
        """Names of the size tokens; without a colon, unlike those of codes."""
        start, stop = self.size_range
        return [f"<|size {side}|>" for side in range(1, stop - start + 1)]

    def flatten(self, row: Tokens) -> list[int]:
        """Returns what stands between the control tokens of one picture: size tokens, if there are any, and code ids.

        Codes go position after position, and at each position stream after stream.

        Raises:
            ValueError: if ``row`` is not a batch of one, has another layout, or is a prefix that the layout forbids.
        """
        if row.layout != self.layout or len(row.lengths) != 1:
            raise ValueError(f"row must be one picture of {self.layout}, got {len(row.lengths)} of {row.layout}")
        length, size = int(row.lengths[0]), next(iter(row.grids), None)
        self._check_length(length, size)
        starts = torch.tensor([start for start, _ in self._code_ranges])
        codes = rearrange(row.ids[0, :length].cpu() + starts, "positions streams -> (positions streams)")
        return [*self.size_ids(size), *codes.tolist()]

    def unflatten(self, ids: Sequence[int], *, whole: bool = True) -> Tokens:
        """Returns the picture whose ids ``flatten`` gave.

        Args:
            ids: sizes, where the layout has them, and codes.
            whole: whether a picture of which codes are missing at the end is refused, unless the layout has prefixes.

        Raises:
            ValueError: if the size is none of the layout's, there are too few or too many code ids for it, or one lies
                outside the range of its stream.
        """
        sizes = self._read_size(ids)
        ids, num_streams = ids[2 * len(sizes) :], len(self.layout.streams)
        if len(ids) % num_streams:
            raise ValueError(f"number of code ids must be a multiple of {num_streams} streams, got {len(ids)}")
        if whole:
            self._check_length(len(ids) // num_streams, next(iter(sizes), None))
        for index, token in enumerate(ids):
            start, stop = self._code_ranges[index % num_streams]
            if not start <= token < stop:
                raise ValueError(f"code id {index} must lie in [{start}, {stop}), got {token}")
        starts = torch.tensor([start for start, _ in self._code_ranges])
        flat = torch.tensor(ids, dtype=torch.int64)
        codes = rearrange(flat, "(positions streams) -> 1 positions streams", streams=num_streams) - starts
        return Tokens(codes, torch.tensor([codes.shape[1]]), self.layout, sizes)

    def _read_size(self, ids: Sequence[int]) -> tuple[Grid, ...]:
        """Returns the size that the first two ids say, if sizes are said."""
        said = [grid for grid in self.layout.grids if self.size_ids(grid) == tuple(ids[:2])]
        if self.layout.grids and not said:
            raise ValueError(f"a picture must begin with the tokens of one of {self.layout.grids}, got {list(ids[:2])}")
        return tuple(said)

    def _check_length(self, length: int, size: Grid | None):
        whole = self.layout.num_positions_of(size)
        if length == whole or (self.layout.prefix_decodable and 1 <= length < whole):
            return
        allowed = f"1 to {whole}" if self.layout.prefix_decodable else f"{whole}"
        raise ValueError(f"a picture must have {allowed} positions, got {length}")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; special ids only if they are not the default ones."""
        values = {"num_text": self.num_text, "layout": self.layout.to_dict()}
        return values if self.special == SpecialIds() else {**values, "special": self.special.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Vocabulary":
        """Returns the vocabulary that ``to_dict`` wrote."""
        special = SpecialIds.from_dict(values.get("special", {}))
        return cls(values["num_text"], CodeLayout.from_dict(values["layout"]), special)
