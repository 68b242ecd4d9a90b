"""What a teaching term reads of a tokenizer at each cell of a picture: a hidden layer, or the codes themselves.

Codes that lie on no grid are read by a small transformer with one query a cell, the codes beside them. Source: Peng et
al., "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers" (VQ-KD), https://arxiv.org/abs/2208.06366,
sec. 2.2 (a small decoder from codes to features).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.contract import Taught
from rebus.tokenizers.tokens import Grid
from rebus.tokenizers.transformer import Transformer, sincos_positions


@dataclass(frozen=True, kw_only=True)
class CellsConfig:
    """Where features of cells come from, and what makes of them what is to be told."""

    layer: str | None = None
    """Layer of the tokenizer, such as ``pixel_decoder.transformer.blocks.1``; its codes by default."""
    depth: int | None = None
    """Transformer blocks that read all the codes; 0 takes the code of each cell alone. By default 0 if codes lie on a
    grid, else 2."""
    dim: int = 256
    """Width of those blocks, and of the layers that tell."""

    def __post_init__(self) -> None:
        if (self.depth or 0) < 0 or (self.depth and self.layer is not None):
            raise ValueError(f"depth must be at least 0, and 0 where a layer is read, got {self.depth}")

    def build(self, num_outputs: int, grid: Grid, canvas: Canvas, widths: Mapping[str, int]) -> "Cells":
        """Builds the reader.

        Args:
            num_outputs: values to be told of each cell.
            grid: that on which the transformer blocks read codes.
            canvas: what is known of the codes.
            widths: channels of the tokenizer's layers.

        Raises:
            ValueError: if codes lie on no grid and nothing reads them, or the width is no whole number of heads.
        """
        reads_codes = self.layer is None
        depth = self.depth if self.depth is not None else 2 if reads_codes and not canvas.on_grid else 0
        if reads_codes and not depth and not canvas.on_grid:
            raise ValueError(
                f"depth must be at least 1, or a layer be read, for codes that lie on no grid, got {depth}"
            )
        if depth and self.dim % 64:
            raise ValueError(f"dim must be a multiple of 64 (a head) for transformer blocks, got {self.dim}")
        return Cells(num_outputs, grid, canvas, widths, layer=self.layer, depth=depth, dim=self.dim)


class Cells(nn.Module):
    """Tells a number of values for each cell of a grid."""

    def __init__(
        self,
        num_outputs: int,
        grid: Grid,
        canvas: Canvas,
        widths: Mapping[str, int],
        *,
        layer: str | None,
        depth: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.layer, self.grid, self.transformer = layer, grid, None
        width = canvas.feature_dim if layer is None else widths[layer]
        if depth:
            self.embed = nn.Linear(width, dim)
            self.code_positions = nn.Parameter(0.02 * torch.randn(canvas.num_features, dim))
            self.queries = nn.Parameter(0.03 * sincos_positions(*grid, dim))
            self.transformer = Transformer(dim, depth, dim // 64)
            width = dim
        self.tell = nn.Sequential(
            nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, num_outputs)
        )

    def forward(self, taught: Taught, grid: Grid | None = None) -> tuple[Float[Tensor, "batch cells outputs"], Grid]:
        """Returns what is told of each cell of a grid, or of that on which the features lie, and the grid."""
        features, own = self._features(taught)
        if grid is not None:
            features, own = resized(features, own, grid), grid
        return self.tell(features), own

    def _features(self, taught: Taught) -> tuple[Tensor, Grid]:
        coded = taught.coded
        if self.layer is not None:
            output = taught.layers[self.layer]
            if output.ndim == 4:
                return rearrange(output, "b c h w -> b (h w) c"), (output.shape[2], output.shape[3])
            # A decoder may have more positions than cells, such as codes; the cells come first.
            return output[:, : coded.grid[0] * coded.grid[1]], coded.grid
        if self.transformer is None:
            return coded.features, coded.grid
        codes = self.embed(coded.features) * coded.features_mask[..., None]
        codes = codes + self.code_positions[: codes.shape[1]]
        queries = self.queries.expand(len(codes), -1, -1).to(codes.dtype)
        return self.transformer(torch.cat([queries, codes], dim=1))[:, : queries.shape[1]], self.grid


def resized(features: Float[Tensor, "batch cells dim"], grid: Grid, wanted: Grid) -> Float[Tensor, "batch new dim"]:
    """Returns the features of a grid's cells brought to another grid: means of finer ones, mixtures of coarser ones."""
    if grid == wanted:
        return features
    cells = rearrange(features.float(), "b (h w) d -> b d h w", h=grid[0])
    cells = F.interpolate(cells, wanted, mode="bilinear", align_corners=False, antialias=True)
    return rearrange(cells, "b d h w -> b (h w) d")
