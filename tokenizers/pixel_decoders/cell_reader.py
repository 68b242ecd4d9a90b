"""From code features to the cells of a picture of any size: what decoders do before they paint."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.pixel_decoders.shares import Shares
from rebus.tokenizers.rotary import check_head, followed_by_placeless, grid_rotation
from rebus.tokenizers.tokens import Grid
from rebus.tokenizers.transformer import Transformer, sincos_positions


class CellReader(nn.Module):
    """Gives each cell what the codes say about it; missing codes are replaced by a learned one.

    On a grid each code joins the cell of its place, and a transformer may follow. A sequence of codes stands beside
    the cells in that transformer, which must then be there: cells read codes, and codes each other.

    Source: Yu et al., "An Image is Worth 32 Tokens" (TiTok), https://arxiv.org/abs/2406.07550, sec. 3.2.
    Differs: cells begin as `Shares` of the codes; positions are rotary, so that the cells may be those of any grid.
    """

    def __init__(self, canvas: Canvas, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        if depth or not canvas.on_grid:
            check_head(dim, num_heads)
        if not canvas.on_grid and depth < 1:
            raise ValueError(f"depth must be at least 1 for codes that lie on no grid, got {depth}")
        self.head_dim = dim // num_heads
        self.embed = nn.Linear(canvas.feature_dim, dim)
        nn.init.eye_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.missing = nn.Parameter(torch.zeros(dim))
        self.code_positions = self.shares = None
        if not canvas.on_grid:
            self.code_positions = nn.Parameter(0.02 * torch.randn(canvas.num_features, dim))
            self.shares = Shares(canvas)
        self.transformer = Transformer(dim, depth, num_heads, has_norm=False) if depth else None

    def forward(
        self, features: Float[Tensor, "batch features dim"], mask: Bool[Tensor, "batch features"], grid: Grid
    ) -> Float[Tensor, "batch cells width"]:
        """Returns a feature for each cell, in raster order."""
        codes = torch.where(mask[..., None], self.embed(features), self.missing)
        if self.transformer is None:
            return codes
        rotation = grid_rotation(*grid, self.head_dim, features.device)
        if self.code_positions is None or self.shares is None:
            return self.transformer(codes, rotation=rotation)
        cells = self.shares(codes, mask, grid) + 0.03 * sincos_positions(*grid, codes.shape[-1]).to(codes)
        both = torch.cat([cells, codes + self.code_positions[: codes.shape[1]]], dim=1)
        rotation = followed_by_placeless(rotation, codes.shape[1])
        return self.transformer(both, rotation=rotation)[:, : cells.shape[1]]
