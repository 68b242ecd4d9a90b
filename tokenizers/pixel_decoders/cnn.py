"""The convolutional decoder of VQGAN and LlamaGen: code features to the pixels of pictures of any size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.encoders.cnn import check_levels, folded_px
from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_kernels
from rebus.tokenizers.pixel_decoders.cell_reader import CellReader
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.tokens import Grid

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import Decoder as UpConvolutions


@dataclass(frozen=True, kw_only=True)
class CnnPixelDecoderConfig:
    """A stack of residual convolutions, after a transformer if there is one; the defaults are LlamaGen's VQ-16."""

    channels: int = 128
    """Channels of a level of multiplier 1."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels of each level, from fine to coarse, in units of ``channels``; each after the first halves a picture."""
    num_blocks: int = 2
    """Residual blocks of a level; each has one more than this."""
    dim: int = 256
    """Width of the features that the first convolution reads."""
    num_groups: int = 32
    """Groups of the group norms."""
    attention: bool = True
    """Whether the coarsest level also attends to the whole picture."""
    depth: int = 0
    """Transformer blocks before the convolutions; codes that lie on no grid need one."""
    num_heads: int = 4
    """Attention heads of these blocks."""
    cosine_start: bool = True
    """Whether the features are also read as cosine coefficients of patches, so that it learns at once."""

    def __post_init__(self) -> None:
        check_levels(self.level_channels, self.num_groups)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, from fine to coarse."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    def build(self, canvas: Canvas) -> "CnnPixelDecoder":
        """Builds the decoder for features; the grids may be any.

        Raises:
            ValueError: if the levels do not divide the canvas's patch, or codes lie on no grid and there is no block.
        """
        return CnnPixelDecoder(canvas, self)


class CnnPixelDecoder(nn.Module):
    """Paints pictures by convolutions that double their size level by level.

    Source: Esser, Rombach and Ommer, https://arxiv.org/abs/2012.09841, sec. 3.1, and LlamaGen, as in
    `encoders.cnn.CnnEncoder`; transformer blocks before the convolutions, Xiong et al., "GigaTok",
    https://arxiv.org/abs/2504.08736, sec. 3.
    Differs: with ``cosine_start`` the convolutions begin at zero and add to a fixed cosine transform.
    """

    kernels: Tensor | None

    def __init__(self, canvas: Canvas, config: CnnPixelDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_px = canvas.patch_px
        self.reader = CellReader(canvas, config.dim, config.depth, config.num_heads)
        self.convolutions, self.fold_px = up_convolutions(config, config.dim, canvas.patch_px)
        self.register_buffer("kernels", start_kernels(config, canvas.patch_px), persistent=False)

    def forward(
        self, features: Float[Tensor, "batch features dim"], mask: Bool[Tensor, "batch features"], grid: Grid
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures of about [0, 1]; see `contract.PixelDecoder`."""
        cells = rearrange(self.reader(features, mask, grid), "b (h w) d -> b d h w", h=grid[0])
        pixels = F.pixel_shuffle(self.convolutions(cells), self.fold_px)
        if self.kernels is not None:
            pixels = pixels + F.conv_transpose2d(cells, self.kernels, stride=self.patch_px)
        return pixels.float() * 0.5 + 0.5


def up_convolutions(config: CnnPixelDecoderConfig, in_channels: int, patch_px: int) -> "tuple[UpConvolutions, int]":
    """Returns fresh convolutions, and the side of the squares of pixels that come out as channels."""
    from diffusers.models.autoencoders.vae import Decoder as UpConvolutions

    fold_px = folded_px(patch_px, config.multipliers)
    coarsest = "AttnUpDecoderBlock2D" if config.attention else "UpDecoderBlock2D"
    levels: dict[str, Any] = {  # the annotations of diffusers allow one level only
        "up_block_types": (coarsest,) + ("UpDecoderBlock2D",) * (len(config.multipliers) - 1),
        "block_out_channels": config.level_channels,
    }
    convolutions = UpConvolutions(
        in_channels=in_channels,
        out_channels=3 * fold_px**2,
        layers_per_block=config.num_blocks,
        norm_num_groups=config.num_groups,
        mid_block_add_attention=config.attention,
        **levels,
    )
    if config.cosine_start:
        for parameter in convolutions.conv_out.parameters():
            nn.init.zeros_(parameter)
    return convolutions, fold_px


def start_kernels(config: CnnPixelDecoderConfig, patch_px: int) -> Float[Tensor, "width 3 patch_px patch_px"] | None:
    """Returns what is added to the picture for each feature of a cell, if anything is."""
    return cosine_kernels(patch_px, config.dim) * COEFFICIENT_SCALE if config.cosine_start else None
