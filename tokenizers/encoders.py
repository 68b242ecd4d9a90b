"""Encoders: pixels to a grid of features."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_basis
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

    def build(self, image_size_px: int) -> "VitEncoder":
        """Builds the encoder for square pictures of one size.

        Raises:
            ValueError: if the size is no multiple of the patch, or the width is more than a patch has values.
        """
        if image_size_px % self.patch_px:
            raise ValueError(f"image size must be a multiple of patch_px={self.patch_px}, got {image_size_px}")
        return VitEncoder(image_size_px // self.patch_px, self.patch_px, self.dim, self.depth, self.num_heads)


class VitEncoder(nn.Module):
    """Encodes square pictures as one feature per patch, in raster order.

    Source: Dosovitskiy et al., https://arxiv.org/abs/2010.11929, sec. 3.1.
    Differs: no class token; a fresh encoder is a cosine transform, see `patch_transform`.
    """

    def __init__(self, grid_side: int, patch_px: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.dim = dim
        self.grid = (grid_side, grid_side)
        self.embed = nn.Linear(3 * patch_px * patch_px, dim)
        with torch.no_grad():
            self.embed.weight.copy_(cosine_basis(patch_px, dim) / COEFFICIENT_SCALE)
        nn.init.zeros_(self.embed.bias)
        # Faint at first: a code should say what a patch shows, not where it is.
        self.positions = nn.Parameter(0.03 * sincos_positions(grid_side, grid_side, dim))
        self.transformer = Transformer(dim, depth, num_heads, has_norm=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches dim"]:
        """Returns the features of pictures with values in [0, 1]."""
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_px, q=self.patch_px)
        return self.transformer(self.embed(patches * 2 - 1) + self.positions)
