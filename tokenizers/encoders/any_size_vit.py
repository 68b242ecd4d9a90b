"""A vision transformer with rotary positions: pictures of any height and width, as features on their own grid."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.encoders.vit import whole_patches
from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_basis
from rebus.tokenizers.rotary import check_head, grid_rotation
from rebus.tokenizers.tokens import Grid
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class AnySizeVitEncoderConfig:
    """A vision transformer over square patches of pictures of any size."""

    patch_px: int = 16
    """Side of a patch."""
    dim: int = 256
    """Width of the features."""
    depth: int = 4
    """Number of transformer blocks."""
    num_heads: int = 4
    """Attention heads; each has four channels or a multiple of four."""

    def build(self, sizes_px: tuple[Grid, ...]) -> "AnySizeVitEncoder":
        """Builds the encoder; it has the same weights whatever the sizes are.

        Raises:
            ValueError: if a size is no multiple of the patch, or the heads cannot be turned.
        """
        for size_px in sizes_px:
            whole_patches(size_px, self.patch_px)
        return AnySizeVitEncoder(self)


class AnySizeVitEncoder(nn.Module):
    """Encodes pictures as one feature per patch, in raster order.

    Source: Heo et al., https://arxiv.org/abs/2403.13298, sec. 3; such an encoder stands in Lu et al., "AToken",
    https://arxiv.org/abs/2509.14476, sec. 3.
    Differs: positions are rotary alone, in two dimensions; a fresh encoder is a cosine transform, see
    `patch_transform`.
    """

    def __init__(self, config: AnySizeVitEncoderConfig) -> None:
        super().__init__()
        self.config = config
        check_head(config.dim, config.num_heads)
        self.patch_px = config.patch_px
        self.dim = config.dim
        self.head_dim = config.dim // config.num_heads
        self.embed = nn.Linear(3 * self.patch_px * self.patch_px, self.dim)
        with torch.no_grad():
            cosines = cosine_basis(self.patch_px, min(self.dim, self.embed.in_features))
            self.embed.weight[: len(cosines)] = cosines / COEFFICIENT_SCALE  # wider ones stay random beyond
        nn.init.zeros_(self.embed.bias)
        self.transformer = Transformer(self.dim, config.depth, config.num_heads, has_norm=False)

    def grids(self, size_px: Grid) -> tuple[Grid, ...]:
        """Returns the one grid; see `Encoder`."""
        return (whole_patches(size_px, self.patch_px),)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Patches:
        """Returns the features of pictures with values in [0, 1]."""
        (grid,) = self.grids((images.shape[-2], images.shape[-1]))
        patches = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_px, q=self.patch_px)
        rotation = grid_rotation(*grid, self.head_dim, images.device)
        return Patches(self.transformer(self.embed(patches * 2 - 1), rotation=rotation), (grid,))
