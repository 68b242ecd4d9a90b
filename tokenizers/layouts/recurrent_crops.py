"""A message of fixed length that is written while looking at one part of the picture after another."""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import (
    NO_EXTRAS,
    Extras,
    Layout,
    Positions,
    all_positions,
    finest_cells,
    one_grid,
)
from rebus.tokenizers.layouts.queries import pooled_coarse_to_fine
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream
from rebus.tokenizers.transformer import Transformer, sincos_positions


@dataclass(frozen=True, kw_only=True)
class RecurrentCropsConfig:
    """A message, and the crops of the picture that it is written from."""

    num_positions: int = 64
    """Codes of the message."""
    crops_per_side: int = 3
    """Crops stand in a square of this side, spread evenly from edge to edge."""
    crop_share: float = 0.375
    """Share of the picture's side that a crop has; crops may overlap but must leave nothing out."""
    order: tuple[int, ...] = ()
    """Crops in the order in which they are seen, numbered in raster order; the raster by default."""
    depth: int = 2
    """Transformer blocks in which the message and a crop read each other, the same for every crop."""
    num_heads: int = 4
    """Attention heads."""
    start: Literal["learned", "pooled"] = "pooled"
    """Whether the message comes to a crop as it was carried there, or with pooled features of the crop added."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "RecurrentCrops":
        """Builds the layout for features of a width and codes of a width.

        Raises:
            ValueError: if a number is out of range, crops leave something out, the order is none of all crops, or
                pictures have several sizes.
        """
        return RecurrentCrops(dim, code_dim, one_grid(grids), self)


class RecurrentCrops(Layout):
    """Rewrites the message crop by crop; between two crops it goes through its codes, so that nothing else is carried.

    Each crop says how far it lies from the one before, in half sides of the picture.

    Source: Davtyan et al., "Communication-Inspired Tokenization for Structured Image Representations" (COMiT),
    https://arxiv.org/abs/2602.20731, sec. 3.
    Differs: crops are cut from the encoder's grid, so a cell knows of others what the encoder tells it; the message
    starts from learned features instead of one code, and is given a crop's pooled features, for the reason that queries
    are; every crop is seen, always in one order; the decoder is another model.
    """

    reads_context = True
    offsets: Float[Tensor, "crops 2"]
    """How far each crop lies below and right of the one before, in half sides of the picture."""

    def __init__(self, dim: int, code_dim: int, grid: Grid, config: RecurrentCropsConfig) -> None:
        super().__init__()
        for name in ("num_positions", "crops_per_side"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
        if not 0 < config.crop_share <= 1:
            raise ValueError(f"crop_share must be above 0 and at most 1, got {config.crop_share}")
        self.num_positions = config.num_positions
        self.is_pooled = config.start == "pooled"
        self.crop = (ceil(config.crop_share * grid[0]), ceil(config.crop_share * grid[1]))
        self.corners = _corners(grid, self.crop, config)
        away = torch.tensor(self.corners).diff(dim=0, prepend=torch.tensor(self.corners[:1]))
        self.register_buffer("offsets", 2 * away / torch.tensor(grid), persistent=False)
        self.message = nn.Parameter(0.02 * torch.randn(config.num_positions, dim))
        self.places = nn.Parameter(0.03 * sincos_positions(*self.crop, dim))
        self.read_offset = nn.Linear(2, dim)
        self.read_codes = nn.Linear(code_dim, dim)
        self.transformer = Transformer(dim, config.depth, config.num_heads, has_norm=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        return CodeLayout("sequence", self.num_positions, streams)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of the message after the last crop."""
        assert extras.lengths is None, "a message has no shorter form"
        cells = finest_cells(patches)
        message = self.message.expand(len(cells), -1, -1)
        for number, (top, left) in enumerate(self.corners):
            if number > 0:
                assert extras.code is not None, "a message goes through its codes between crops"
                message = self.message + self.read_codes(extras.code(message))
            crop = cells[..., top : top + self.crop[0], left : left + self.crop[1]]
            if self.is_pooled:
                message = message + pooled_coarse_to_fine(crop, self.num_positions) / len(self.corners)
            crop = rearrange(crop, "b d h w -> b (h w) d") + self.places + self.read_offset(self.offsets[number])
            read = [crop, message] if patches.context is None else [crop, patches.context, message]
            message = self.transformer(torch.cat(read, dim=1))[:, -self.num_positions :]
        return Positions(message, all_positions(message))


def _corners(grid: Grid, crop: Grid, config: RecurrentCropsConfig) -> list[Grid]:
    """Returns the top and left cell of each crop, in the order in which they are seen."""
    tops, lefts = (_starts(side, part, config) for side, part in zip(grid, crop, strict=True))
    corners = [(top, left) for top in tops for left in lefts]
    order = config.order or tuple(range(len(corners)))
    if sorted(order) != list(range(len(corners))):
        raise ValueError(f"order must hold each of 0..{len(corners) - 1} once, got {order}")
    return [corners[place] for place in order]


def _starts(side: int, part: int, config: RecurrentCropsConfig) -> list[int]:
    """Returns where along a side the crops start."""
    number = config.crops_per_side
    starts = [round(index * (side - part) / max(number - 1, 1)) for index in range(number)]
    if any(second - first > part for first, second in pairwise((*starts, side))):
        needed = f"large enough for {number} crops to cover a side of {side} cells"
        raise ValueError(f"crop_share must be {needed}, got {config.crop_share}")
    return starts
