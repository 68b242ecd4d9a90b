"""A vision transformer from the pixels of square pictures to a grid of features."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_basis
from rebus.tokenizers.tokens import Grid
from rebus.tokenizers.transformer import Transformer, sincos_positions


@dataclass(frozen=True, kw_only=True)
class VitEncoderConfig:
    """A vision transformer over square patches."""

    patch_px: int = 16
    """Side of a patch; patch 16 runs four times as many pictures as patch 8."""
    dim: int = 256
    """Width of the features."""
    depth: int = 4
    """Number of transformer blocks."""
    num_heads: int = 4
    """Attention heads."""

    def build(self, sizes_px: tuple[Grid, ...]) -> "VitEncoder":
        """Builds the encoder for pictures of one height and width.

        Raises:
            ValueError: if there are several sizes, or the size is no multiple of the patch.
        """
        if len(sizes_px) != 1:
            raise ValueError(f"image sizes of a VitEncoder must be one, got {len(sizes_px)}")
        return VitEncoder(whole_patches(sizes_px[0], self.patch_px), self)


class VitEncoder(nn.Module):
    """Encodes pictures of one size as one feature per patch, in raster order.

    Source: Dosovitskiy et al., https://arxiv.org/abs/2010.11929, sec. 3.1.
    Differs: no class token; a fresh encoder is a cosine transform, see `patch_transform`.
    """

    def __init__(self, grid: Grid, config: VitEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_px = config.patch_px
        self.dim = config.dim
        self.grid = grid
        self.embed = nn.Linear(3 * self.patch_px * self.patch_px, self.dim)
        with torch.no_grad():
            cosines = cosine_basis(self.patch_px, min(self.dim, self.embed.in_features))
            self.embed.weight[: len(cosines)] = cosines / COEFFICIENT_SCALE  # wider ones stay random beyond
        nn.init.zeros_(self.embed.bias)
        # Faint at first: a code should say what a patch shows, not where it is.
        self.positions = nn.Parameter(0.03 * sincos_positions(*grid, self.dim))
        self.transformer = Transformer(self.dim, config.depth, config.num_heads, has_norm=False)

    def grids(self, size_px: Grid) -> tuple[Grid, ...]:
        """Returns the one grid; see `Encoder`."""
        if (grid := whole_patches(size_px, self.patch_px)) != self.grid:
            raise ValueError(f"pictures must have a grid of {self.grid} patches, got {grid}")
        return (grid,)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Patches:
        """Returns the features of pictures with values in [0, 1]."""
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_px, q=self.patch_px)
        return Patches(self.transformer(self.embed(patches * 2 - 1) + self.positions), (self.grid,))


def whole_patches(size_px: Grid, patch_px: int) -> Grid:
    """Returns the rows and columns of square patches that make up a picture of that height and width.

    Raises:
        ValueError: if a side is no multiple of the patch.
    """
    if size_px[0] % patch_px or size_px[1] % patch_px or min(size_px) < patch_px:
        raise ValueError(f"image size must be a multiple of patch_px={patch_px}, got {size_px[0]} x {size_px[1]}")
    return size_px[0] // patch_px, size_px[1] // patch_px
