"""Codes of the whole picture first, then one code for each patch, each knowing those before it."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
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
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class HolisticGridConfig:
    """Queries for the whole picture, then its patches."""

    num_holistic: int = 32
    """Codes of the whole picture."""
    depth: int = 1
    """Transformer blocks of each of the three parts: all see all; causal; causal again behind the codes."""
    num_heads: int = 4
    """Attention heads."""
    shift: int = 4
    """How many positions earlier than its own code a patch is read behind the codes, so that it leans on the whole."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "HolisticGrid":
        """Builds the layout for features of a width and codes of a width.

        Raises:
            ValueError: if a number is out of range, or pictures have several sizes.
        """
        return HolisticGrid(dim, code_dim, one_grid(grids), self)


class HolisticGrid(Layout):
    """Learned queries and patches share what they know, then stand in a row: queries first, each seeing those before.

    Behind the codes a causal transformer reads the row and hands each patch on to its cell, from ``shift`` positions
    before its own: what the decoder paints at the first cells comes from the holistic codes alone.

    Source: Zheng et al., "Holistic Tokenizer for Autoregressive Image Generation" (Hita),
    https://arxiv.org/abs/2507.02358, sec. 3.
    Differs: one code book for both kinds of code; the encoder's patches take part instead of a frozen DINOv2's beside
    those of a CNN.
    """

    on_grid = True

    def __init__(self, dim: int, code_dim: int, grid: Grid, config: HolisticGridConfig) -> None:
        super().__init__()
        if config.num_holistic < 1:
            raise ValueError(f"num_holistic must be at least 1, got {config.num_holistic}")
        if not 0 <= config.shift <= config.num_holistic:
            raise ValueError(f"shift must be in 0..{config.num_holistic}, got {config.shift}")
        self.dim, self.num_holistic, self.shift = dim, config.num_holistic, config.shift
        self.num_cells = grid[0] * grid[1]
        total = self.num_holistic + self.num_cells
        self.queries = nn.Parameter(0.02 * torch.randn(self.num_holistic, dim))
        self.joint = Transformer(dim, config.depth, config.num_heads, has_norm=False)
        self.causal = Transformer(dim, config.depth, config.num_heads, has_norm=False)
        self.embed = nn.Linear(code_dim, dim)
        nn.init.eye_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.places = nn.Parameter(0.02 * torch.randn(total, dim))
        self.fusion = Transformer(dim, config.depth, config.num_heads, has_norm=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        levels = (self.num_holistic, self.num_cells)
        return CodeLayout("sequence", sum(levels), streams, levels=levels)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of the queries, then of the patches."""
        assert extras.lengths is None, "this layout has no shorter form"
        cells = rearrange(finest_cells(patches), "b d h w -> b (h w) d")
        row = self.joint(torch.cat([self.queries.expand(len(cells), -1, -1), cells], dim=1))
        features = self.causal(row, _causal(row))
        return Positions(features, all_positions(features))

    def arrange(
        self, codes: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"]
    ) -> tuple[Float[Tensor, "batch places arranged_dim"], Bool[Tensor, "batch places"]]:
        """Returns what the cells show, each from the codes before it; see the class."""
        row = self.embed(codes) + self.places
        first = self.num_holistic - self.shift
        cells = self.fusion(row, _causal(row))[:, first : first + self.num_cells]
        return cells, mask[:, self.num_holistic :]

    def arranged_dim(self, code_dim: int) -> int:
        """Returns the width of the features behind the codes: that of the encoder."""
        return self.dim


def _causal(row: Float[Tensor, "batch positions dim"]) -> Bool[Tensor, "1 positions positions"]:
    length = row.shape[1]
    return torch.ones(1, length, length, dtype=torch.bool, device=row.device).tril()
