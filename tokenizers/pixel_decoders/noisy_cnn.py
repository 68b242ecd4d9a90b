"""The convolutional decoder with noise: for codes so few that a picture is one of many that they allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.pixel_decoders.cell_reader import CellReader
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig, start_kernels, up_convolutions
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.tokens import Grid


@dataclass(frozen=True, kw_only=True)
class NoisyCnnPixelDecoderConfig:
    """A convolutional decoder that noise is added to."""

    cnn: CnnPixelDecoderConfig = CnnPixelDecoderConfig()
    """The convolutions."""

    def build(self, canvas: Canvas) -> "NoisyCnnPixelDecoder":
        """Builds the decoder for features; the grids may be any.

        Raises:
            ValueError: if the levels do not divide the canvas's patch, or codes lie on no grid and there is no block.
        """
        return NoisyCnnPixelDecoder(canvas, self)


class NoisyCnnPixelDecoder(nn.Module):
    """Paints pictures from features and noise of the same width, with norms that follow the features.

    Source: Zhuang et al., "WeTok", https://arxiv.org/abs/2508.05599, sec. 3; its code takes scale and shift of the
    norms from spread and mean of the features over the picture.
    Differs: the convolutions are those of LlamaGen, and noise and features change nothing in a fresh decoder.
    """

    kernels: Tensor | None

    def __init__(self, canvas: Canvas, config: NoisyCnnPixelDecoderConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.cnn.dim, config.cnn.level_channels[::-1]
        self.reader = CellReader(canvas, dim, config.cnn.depth, config.cnn.num_heads)
        self.convolutions, self.fold_px = up_convolutions(config.cnn, 2 * dim, canvas.patch_px)
        with torch.no_grad():
            self.convolutions.conv_in.weight[:, dim:] = 0
        self.norms = nn.ModuleList(
            _FollowingNorm(dim, width, config.cnn.num_groups) for width in (channels[0], *channels[:-1])
        )
        self.patch_px = canvas.patch_px
        self.register_buffer("kernels", start_kernels(config.cnn, canvas.patch_px), persistent=False)

    def draw_noise(self, seeds: Sequence[int], grid: Grid) -> Float[Tensor, "batch cells channels"]:
        """Returns the noise of pictures, each from a seed of its own."""
        shape = (grid[0] * grid[1], self.config.cnn.dim)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def forward(
        self,
        features: Float[Tensor, "batch features dim"],
        mask: Bool[Tensor, "batch features"],
        grid: Grid,
        noise: Float[Tensor, "#batch cells channels"] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures of about [0, 1]; see `contract.PixelDecoder`. Without noise it is always the same noise."""
        cells = self.reader(features, mask, grid)
        if noise is None:
            noise = self.draw_noise([0], grid)
        both = torch.cat([cells, noise.to(cells).expand_as(cells)], dim=-1)
        hidden = self.convolutions.conv_in(rearrange(both, "b (h w) d -> b d h w", h=grid[0]))
        hidden = self.convolutions.mid_block(hidden)
        for norm, block in zip(self.norms, self.convolutions.up_blocks, strict=True):
            hidden = block(norm(hidden, cells))
        hidden = self.convolutions.conv_act(self.convolutions.conv_norm_out(hidden))
        pixels = F.pixel_shuffle(self.convolutions.conv_out(hidden), self.fold_px)
        if self.kernels is not None:
            on_grid = rearrange(cells, "b (h w) d -> b d h w", h=grid[0])
            pixels = pixels + F.conv_transpose2d(on_grid, self.kernels, stride=self.patch_px)
        return pixels.float() * 0.5 + 0.5


class _FollowingNorm(nn.Module):
    """A group norm whose scale and shift follow spread and mean of a picture's features."""

    def __init__(self, dim: int, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6, affine=False)
        self.to_scale, self.to_shift = nn.Linear(dim, channels), nn.Linear(dim, channels)
        for linear, start in ((self.to_scale, 1.0), (self.to_shift, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, start)

    def forward(
        self, hidden: Float[Tensor, "batch channels rows columns"], features: Float[Tensor, "batch cells dim"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        spread = (features.var(dim=1, unbiased=False) + 1e-6).sqrt()
        scale, shift = self.to_scale(spread), self.to_shift(features.mean(dim=1))
        return self.norm(hidden) * scale[..., None, None] + shift[..., None, None]
