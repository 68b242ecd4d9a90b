"""Two encoders of the same picture: one for what it shows, one for how it looks."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.encoders.contract import Encoder, Patches
from rebus.tokenizers.encoders.one_branch import OneBranchEncoderConfig
from rebus.tokenizers.encoders.tower import TowerEncoderConfig
from rebus.tokenizers.tokens import Grid


@dataclass(frozen=True, kw_only=True)
class TwoBranchEncoderConfig:
    """A semantic and a pixel encoder, and how their features are joined."""

    semantic: OneBranchEncoderConfig = TowerEncoderConfig()
    """Encoder of what a picture shows."""
    pixel: OneBranchEncoderConfig = CnnEncoderConfig()
    """Encoder of how it looks."""
    sequence_dim: int | None = None
    """Width to which the features of both are projected, to follow one another: the semantic grid, then the pixel
    grid. Without it they stand side by side on the pixel grid, semantic before pixel features."""

    def __post_init__(self) -> None:
        if self.sequence_dim is not None and self.sequence_dim < 1:
            raise ValueError(f"sequence_dim must be at least 1, got {self.sequence_dim}")

    def build(self, sizes_px: tuple[Grid, ...]) -> "TwoBranchEncoder":
        """Builds the encoder.

        Raises:
            ValueError: if a branch cannot be built for the sizes, or the semantic grid of a sequence is the finer one.
        """
        encoder = TwoBranchEncoder(self, self.semantic.build(sizes_px), self.pixel.build(sizes_px))
        for size_px in sizes_px:
            encoder.grids(size_px)
        return encoder


class TwoBranchEncoder(nn.Module):
    """Encodes pictures by two encoders.

    Source: two grids, Huang et al., "ILLUME+", https://arxiv.org/abs/2504.01934, sec. 3; channels side by side, Qu
    et al., "TokenFlow", https://arxiv.org/abs/2412.03069, sec. 3.
    Differs: the pixel encoder of ILLUME+ does not read the quantized semantic features; semantic features that are to
    stand beside pixel features are brought to their grid by bilinear interpolation.
    """

    def __init__(self, config: TwoBranchEncoderConfig, semantic: Encoder, pixel: Encoder) -> None:
        super().__init__()
        self.config = replace(config, semantic=semantic.config, pixel=pixel.config)
        self.semantic, self.pixel = semantic, pixel
        self.patch_px = pixel.patch_px
        self.dim = config.sequence_dim or semantic.dim + pixel.dim
        self.projections = None
        if config.sequence_dim is not None:
            self.projections = nn.ModuleList(nn.Linear(encoder.dim, self.dim) for encoder in (semantic, pixel))
            for projection in self.projections:
                assert isinstance(projection, nn.Linear)
                nn.init.eye_(projection.weight)  # the first features of a fresh encoder are the most telling ones
                nn.init.zeros_(projection.bias)

    def grids(self, size_px: Grid) -> tuple[Grid, ...]:
        """Returns one grid or two; see `Encoder`."""
        (semantic,), (pixel,) = self.semantic.grids(size_px), self.pixel.grids(size_px)
        if self.projections is None:
            return (pixel,)
        if semantic[0] > pixel[0] or semantic[1] > pixel[1]:
            raise ValueError(f"semantic grid must not be finer than the pixel grid {pixel}, got {semantic}")
        return semantic, pixel

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Patches:
        """Returns the features of pictures with values in [0, 1]."""
        branches = semantic, pixel = self.semantic(images), self.pixel(images)
        if self.projections is not None:
            projected = [project(branch.features) for project, branch in zip(self.projections, branches, strict=True)]
            return Patches(torch.cat(projected, dim=1), semantic.grids + pixel.grids)
        cells = rearrange(semantic.features, "b (h w) d -> b d h w", h=semantic.grids[0][0])
        cells = F.interpolate(cells, size=pixel.grids[0], mode="bilinear", align_corners=False)
        return Patches(torch.cat([rearrange(cells, "b d h w -> b (h w) d"), pixel.features], dim=-1), pixel.grids)
