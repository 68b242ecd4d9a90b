"""A light decoder from code features to pixels: it teaches the codes what a picture looks like and shows previews."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_basis
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.pixel_decoders.shares import Shares
from rebus.tokenizers.tokens import Grid
from rebus.tokenizers.transformer import Transformer, sincos_positions


@dataclass(frozen=True, kw_only=True)
class VitPixelDecoderConfig:
    """A vision transformer from code features to patches of pixels."""

    dim: int = 256
    """Width."""
    depth: int = 4
    """Number of transformer blocks."""
    num_heads: int = 4
    """Attention heads."""

    def build(self, canvas: Canvas) -> "VitPixelDecoder":
        """Builds the decoder for features and a grid of patches.

        Raises:
            ValueError: if there are several grids.
        """
        if len(canvas.grids) != 1:
            raise ValueError(f"grids of a VitPixelDecoder must be one, got {len(canvas.grids)}")
        return VitPixelDecoder(canvas, self)


class VitPixelDecoder(nn.Module):
    """Paints a picture from the features of its codes; codes beyond a prefix are replaced by a learned one.

    On a grid each code joins the patch of its place; a sequence of codes stands beside the patches as context. A fresh
    decoder reads the first channels of a code as cosine coefficients, see `patch_transform`.
    """

    def __init__(self, canvas: Canvas, config: VitPixelDecoderConfig) -> None:
        super().__init__()
        self.config = config
        dim, self.patch_px = config.dim, canvas.patch_px
        self.on_grid = canvas.on_grid
        (self.grid,) = canvas.grids
        self.embed = nn.Linear(canvas.feature_dim, dim)
        nn.init.eye_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.missing = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(0.03 * sincos_positions(*self.grid, dim))
        self.code_positions = None if self.on_grid else nn.Parameter(0.02 * torch.randn(canvas.num_features, dim))
        self.shares = None if self.on_grid else Shares(canvas)
        self.transformer = Transformer(dim, config.depth, config.num_heads, has_norm=False)
        self.to_pixels = nn.Linear(dim, 3 * self.patch_px * self.patch_px)
        with torch.no_grad():
            cosines = cosine_basis(self.patch_px, min(dim, self.to_pixels.out_features))
            self.to_pixels.weight[:, : len(cosines)] = cosines.T * COEFFICIENT_SCALE
        nn.init.zeros_(self.to_pixels.bias)

    def forward(
        self, features: Float[Tensor, "batch features dim"], mask: Bool[Tensor, "batch features"], grid: Grid
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures of about [0, 1]; see `contract.PixelDecoder`."""
        assert grid == self.grid, f"a decoder of {self.grid} patches was asked for {grid}"
        codes = torch.where(mask[..., None], self.embed(features), self.missing)
        if self.code_positions is None or self.shares is None:
            hidden = self.transformer(codes + self.positions)
        else:
            patches = self.shares(codes, mask, grid) + self.positions
            context = codes + self.code_positions[: codes.shape[1]]
            hidden = self.transformer(torch.cat([patches.to(context.dtype), context], dim=1))[:, : patches.shape[1]]
        pixels = rearrange(
            self.to_pixels(hidden),
            "b (h w) (c p q) -> b c (h p) (w q)",
            h=self.grid[0],
            p=self.patch_px,
            q=self.patch_px,
        )
        return pixels.float() * 0.5 + 0.5
