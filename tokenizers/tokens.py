"""Discrete codes of a batch of pictures, and the layout that says how many there are and what each one means."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

Grid = tuple[int, int]
"""Rows and columns of a picture."""


@dataclass(frozen=True)
class Stream:
    """One code of the vector that stands at every position."""

    name: str
    """Distinct within a layout, such as ``"semantic"``."""
    size: int
    """Number of codes in the code book; ids lie in ``[0, size)``."""

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size of stream {self.name!r} must be at least 1, got {self.size}")


@dataclass(frozen=True)
class CodeLayout:
    """How the codes of one picture are arranged: everything that has to agree before codes may be exchanged."""

    kind: Literal["grid", "sequence"]
    """``"grid"``: positions are the cells of a picture in raster order. ``"sequence"``: positions have no place."""
    num_positions: int
    """Positions of a whole picture, of the largest if there are several grids."""
    streams: tuple[Stream, ...]
    """The codes at each position, in this order."""
    grid: Grid | None = None
    """That of every picture; None for a sequence or if there are several grids."""
    prefix_decodable: bool = False
    """Whether the first positions alone are a picture, as in a nested sequence."""
    grids: tuple[Grid, ...] = ()
    """Those of which each picture has one, ascending, if there are several; two may have as many cells.

    A sequence whose length depends on the picture has one row and as many columns as positions.
    """
    levels: tuple[int, ...] = ()
    """Positions of each level of a sequence, coarse to fine, if a level needs to know only of those before it."""

    def __post_init__(self):
        if self.num_positions < 1:
            raise ValueError(f"num_positions must be at least 1, got {self.num_positions}")
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"streams must be at least one and have distinct names, got {names}")
        if self.levels and (self.kind == "grid" or min(self.levels) < 1 or sum(self.levels) != self.num_positions):
            got = f"{self.levels} in a {self.kind}"
            raise ValueError(f"levels must share out the {self.num_positions} positions of a sequence, got {got}")
        if self.kind == "sequence" and (self.grid or any(rows != 1 for rows, _ in self.grids)):
            got = self.grid or self.grids
            raise ValueError(f"grid must be None for a sequence, and grids rows of its positions, got {got}")
        if self.grids:
            self._check_grids()
        elif self.kind == "grid" and _num_cells(self.grid or (0, 0)) != self.num_positions:
            raise ValueError(f"grid must be (rows, columns) with {self.num_positions} cells, got {self.grid}")

    def _check_grids(self):
        if self.grid is not None or len(self.grids) < 2 or list(self.grids) != sorted(set(self.grids)):
            raise ValueError(f"grids must be several, ascending, and grid None, got {self.grids} and {self.grid}")
        cells = [_num_cells(grid) for grid in self.grids]
        if min(cells) < 1 or max(cells) != self.num_positions:
            raise ValueError(f"grids must be (rows, columns) with {self.num_positions} cells at most, got {self.grids}")

    @property
    def sizes(self) -> tuple[Grid, ...]:
        """Grids that a picture may have; none for a sequence."""
        return self.grids or (() if self.grid is None else (self.grid,))

    def num_positions_of(self, grid: Grid | None) -> int:
        """Returns the positions of a whole picture on a grid, or of the largest picture.

        Raises:
            ValueError: if no picture has that grid.
        """
        if grid is None:
            return self.num_positions
        if grid not in self.sizes:
            allowed = f"one of {', '.join(map(str, self.sizes))}" if self.sizes else "None"
            raise ValueError(f"size of a picture must be {allowed}, got {grid}")
        return _num_cells(grid)

    def check_one_size(self, part: str) -> None:
        """Refuses pictures of several sizes on behalf of a part that knows one only; their lengths may differ.

        Raises:
            ValueError: if there are several grids of cells.
        """
        if self.grids and self.kind == "grid":
            raise ValueError(f"pictures of {part} must all have one size, got the sizes {self.grids}")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; ``grids`` and ``levels`` are among them only if there are several."""
        values = {**asdict(self), "streams": [asdict(stream) for stream in self.streams]}
        values["grid"] = None if self.grid is None else list(self.grid)
        several = {"grids": [list(grid) for grid in values.pop("grids")], "levels": list(values.pop("levels"))}
        return values | {name: value for name, value in several.items() if value}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CodeLayout":
        """Returns the layout that ``to_dict`` wrote."""
        streams = tuple(Stream(**stream) for stream in values["streams"])
        grid = None if values["grid"] is None else tuple(values["grid"])
        grids = tuple((rows, columns) for rows, columns in values.get("grids", ()))
        levels = tuple(values.get("levels", ()))
        return cls(**{**values, "streams": streams, "grid": grid, "grids": grids, "levels": levels})


def _num_cells(grid: Grid) -> int:
    """Returns the cells of a grid; 0 if a side is no length."""
    return grid[0] * grid[1] if min(grid) > 0 else 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """Codes of a batch of pictures; a picture may hold only its first positions."""

    ids: Int[Tensor, "batch positions streams"]
    """int64 codes, each in ``[0, size)`` of its stream, and -1 beyond a picture's length."""
    lengths: Int[Tensor, " batch"]
    """int64 positions that each picture holds, at least 1."""
    layout: CodeLayout
    grids: tuple[Grid, ...] = ()
    """That of each picture if the layout has several; a length alone does not say it."""

    def __post_init__(self):
        ids, lengths, layout = self.ids, self.lengths, self.layout
        if ids.dtype != torch.int64 or lengths.dtype != torch.int64:
            raise ValueError(f"ids and lengths must be int64, got {ids.dtype} and {lengths.dtype}")
        if ids.ndim != 3 or ids.shape[0] < 1 or ids.shape[2] != len(layout.streams):
            expected = f"(at least 1, positions, {len(layout.streams)})"
            raise ValueError(f"ids must have shape {expected}, got {tuple(ids.shape)}")
        if lengths.shape != ids.shape[:1]:
            raise ValueError(f"lengths must have shape {tuple(ids.shape[:1])}, got {tuple(lengths.shape)}")
        if ids.shape[1] > layout.num_positions:
            raise ValueError(f"ids must have at most {layout.num_positions} positions, got {ids.shape[1]}")
        if not ((lengths >= 1) & (lengths <= ids.shape[1])).all():
            raise ValueError(f"lengths must lie in [1, {ids.shape[1]}], got {lengths.tolist()}")
        self._check_values()
        self._check_grids()

    def _check_grids(self):
        expected = len(self.lengths) if self.layout.grids else 0
        if len(self.grids) != expected:
            raise ValueError(f"grids must be {expected} for {len(self.lengths)} pictures, got {len(self.grids)}")
        if self.grids:
            for grid, length in zip(self.grids, self.lengths.tolist(), strict=True):
                whole = self.layout.num_positions_of(grid)
                if length > whole:
                    raise ValueError(f"a picture of size {grid} must have at most {whole} positions, got {length}")

    def _check_values(self):
        held = self.mask.unsqueeze(-1)
        if not (held | (self.ids == -1)).all():
            raise ValueError("ids beyond a picture's length must be -1, got codes there")
        sizes = torch.tensor([stream.size for stream in self.layout.streams], device=self.ids.device)
        if (held & ((self.ids < 0) | (self.ids >= sizes))).any():
            raise ValueError(f"ids must lie in [0, size) with sizes {sizes.tolist()}, got codes outside")

    @property
    def mask(self) -> Bool[Tensor, "batch positions"]:
        """True at the positions that a picture holds."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths.unsqueeze(1)

    def prefix(self, length: int) -> "Tokens":
        """Returns the first ``length`` positions of every picture (all of a picture that is shorter).

        Raises:
            ValueError: if ``length`` is not in ``[1, num_positions]``.
        """
        if not 1 <= length <= self.layout.num_positions:
            raise ValueError(f"length must lie in [1, {self.layout.num_positions}], got {length}")
        lengths = self.lengths.clamp(max=length)
        return Tokens(self.ids[:, : int(lengths.max())], lengths, self.layout, self.grids)

    def row(self, index: int) -> "Tokens":
        """Returns one picture as a batch of one, trimmed to its length."""
        length = int(self.lengths[index])
        grids = (self.grids[index],) if self.grids else ()
        return Tokens(self.ids[index, :length].unsqueeze(0), self.lengths[index].unsqueeze(0), self.layout, grids)

    def to(self, device: torch.device | str) -> "Tokens":
        """Returns the same codes on another device."""
        return Tokens(self.ids.to(device), self.lengths.to(device), self.layout, self.grids)

    @classmethod
    def cat(cls, batches: "Sequence[Tokens]") -> "Tokens":
        """Returns all pictures as one batch, padded to the longest.

        Raises:
            ValueError: if there is no batch or the layouts differ.
        """
        layouts = {tokens.layout for tokens in batches}
        if len(layouts) != 1:
            raise ValueError(f"batches must share one layout, got {len(layouts)} layouts")
        positions = max(tokens.ids.shape[1] for tokens in batches)
        ids = [pad(tokens.ids, (0, 0, 0, positions - tokens.ids.shape[1]), value=-1) for tokens in batches]
        grids = tuple(grid for tokens in batches for grid in tokens.grids)
        return cls(torch.cat(ids), torch.cat([tokens.lengths for tokens in batches]), layouts.pop(), grids)
