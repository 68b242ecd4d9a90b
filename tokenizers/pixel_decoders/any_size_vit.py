"""A vision transformer with rotary positions from code features to the pixels of pictures of any height and width."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_basis
from rebus.tokenizers.pixel_decoders.cell_reader import CellReader
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.tokens import Grid


@dataclass(frozen=True, kw_only=True)
class AnySizeVitPixelDecoderConfig:
    """A vision transformer from code features to patches of pixels of pictures of any size."""

    dim: int = 256
    """Width."""
    depth: int = 4
    """Number of transformer blocks."""
    num_heads: int = 4
    """Attention heads; each has four channels or a multiple of four."""

    def build(self, canvas: Canvas) -> "AnySizeVitPixelDecoder":
        """Builds the decoder for features; the grids may be any.

        Raises:
            ValueError: if the heads cannot be turned, or codes lie on no grid and there is no block.
        """
        return AnySizeVitPixelDecoder(canvas, self)


class AnySizeVitPixelDecoder(nn.Module):
    """Paints pictures patch by patch; a fresh decoder is a cosine transform, see `patch_transform`.

    Source: Heo et al., https://arxiv.org/abs/2403.13298, sec. 3.
    """

    def __init__(self, canvas: Canvas, config: AnySizeVitPixelDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_px = canvas.patch_px
        self.reader = CellReader(canvas, config.dim, config.depth, config.num_heads)
        self.to_pixels = nn.Linear(config.dim, 3 * self.patch_px * self.patch_px)
        with torch.no_grad():
            cosines = cosine_basis(self.patch_px, min(config.dim, self.to_pixels.out_features))
            self.to_pixels.weight[:, : len(cosines)] = cosines.T * COEFFICIENT_SCALE
        nn.init.zeros_(self.to_pixels.bias)

    def forward(
        self, features: Float[Tensor, "batch features dim"], mask: Bool[Tensor, "batch features"], grid: Grid
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures of about [0, 1]; see `contract.PixelDecoder`."""
        patches = self.to_pixels(self.reader(features, mask, grid))
        pixels = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=grid[0], p=self.patch_px, q=self.patch_px)
        return pixels.float() * 0.5 + 0.5
