"""Scales of one picture, coarse to fine, each coding what the scales before it have left."""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import (
    NO_EXTRAS,
    Arranged,
    Extras,
    Layout,
    Positions,
    all_positions,
    finest_cells,
    one_grid,
    standing_still,
)
from rebus.tokenizers.quantizers.contract import Quantizer
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream


@dataclass(frozen=True, kw_only=True)
class MultiScaleConfig:
    """Square scales that add up to the features of the grid."""

    scales: tuple[int, ...] = ()
    """Sides of the scales in cells, ascending up to the grid's; by default 1, 2, 4 and so on."""
    num_phi: int = 4
    """Convolutions behind the scales, each shared by some that follow one another; 0 leaves them out, as TokenFlow."""
    commitment: float = 0.25
    """Weight of pulling features towards the sums up to each scale; the sums are pulled to the features by 1. At 0
    neither is computed, and the quantizer's own terms for each scale stand alone, as in TokenFlow."""
    drop_rate: float = 0.0
    """Share of training pictures that lack one scale, any but the first; 0.1 in TokenFlow."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "MultiScale":
        """Builds the layout for codes of a width.

        Raises:
            ValueError: if the grid is not square, the scales do not end at it, a number is out of range, or pictures
                have several sizes.
        """
        del dim
        return MultiScale(code_dim, one_grid(grids), self)


class MultiScale(Layout):
    """Codes the pooled features at the coarsest scale, then what that has left at the next, and so on; in float32.

    The grid stands at the positions of the last scale, until ``quantize`` makes all scales of it.

    Source: Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction",
    https://arxiv.org/abs/2404.02905, algorithms 1 and 2; Qu et al., "TokenFlow", https://arxiv.org/abs/2412.03069,
    sec. 3.2 (no convolutions, scale drop).
    Differs: the quantizer adds its own terms, from one look at the residuals of all scales, so that a code book moves
    once a step; a scale is dropped for a picture, not for a batch.
    """

    on_grid = True
    scale_of: Int[Tensor, " positions"]
    """The number of the scale that each position belongs to."""

    def __init__(self, code_dim: int, grid: Grid, config: MultiScaleConfig) -> None:
        super().__init__()
        if grid[0] != grid[1]:
            raise ValueError(f"grid of several scales must be square, got {grid}")
        self.scales = config.scales or _doubling(grid[0])
        ascending = list(self.scales) == sorted(set(self.scales))
        if not ascending or self.scales[0] < 1 or self.scales[-1] != grid[0]:
            raise ValueError(f"scales must ascend from 1 or more to the grid's {grid[0]}, got {self.scales}")
        if not 0 <= config.num_phi <= len(self.scales):
            raise ValueError(f"num_phi must be in 0..{len(self.scales)}, got {config.num_phi}")
        if config.commitment < 0 or (config.num_phi and not config.commitment):
            raise ValueError(f"commitment must be above 0, or 0 with num_phi = 0, got {config.commitment}")
        if not 0 <= config.drop_rate < 1 or (config.drop_rate and len(self.scales) == 1):
            raise ValueError(f"drop_rate must be in [0, 1), and 0 for a single scale, got {config.drop_rate}")
        self.commitment, self.drop_rate = config.commitment, config.drop_rate
        self.levels = tuple(scale * scale for scale in self.scales)
        self.phi = nn.ModuleList(nn.Conv2d(code_dim, code_dim, 3, padding=1) for _ in range(config.num_phi))
        self.phi_of = _shared(len(self.scales), config.num_phi)
        scale_of = [number for number, cells in enumerate(self.levels) for _ in range(cells)]
        self.register_buffer("scale_of", torch.tensor(scale_of), persistent=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet: the scales up to any one are a picture."""
        return CodeLayout("sequence", sum(self.levels), streams, prefix_decodable=True, levels=self.levels)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of the grid at the positions of the last scale."""
        assert extras.lengths is None, "training cuts no scales off the end"
        cells = rearrange(finest_cells(patches), "b d h w -> b (h w) d")
        features = F.pad(cells, (0, 0, sum(self.levels[:-1]), 0))
        return Positions(features, all_positions(features))

    def quantize(
        self,
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "batch positions"],
        quantizer: Quantizer,
        extras: Extras = NO_EXTRAS,
    ) -> Arranged:
        """Returns ids of all scales with their sum on the grid; see `Layout`."""
        with torch.autocast(features.device.type, enabled=False):
            grid = _to_map(features[:, -self.levels[-1] :].float())
            kept = self._kept(grid, extras.noise)
            ids, residuals, sums = self._code(grid, quantizer, kept)
            taught = quantizer(torch.cat(residuals, dim=1), mask & kept[:, self.scale_of])
            losses = dict(taught.losses) | self._losses(grid, torch.stack(sums), kept)
            arranged = _to_row(grid + (sums[-1] - grid).detach())
        return Arranged(torch.cat(ids, dim=1), arranged, all_positions(arranged), losses, taught.stats)

    def arrange(
        self, codes: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"]
    ) -> tuple[Float[Tensor, "batch places arranged_dim"], Bool[Tensor, "batch places"]]:
        """Returns the sum of the scales on the grid; a scale that is not whole adds nothing."""
        ends = torch.tensor([end - 1 for end in accumulate(self.levels)], device=mask.device)
        held = mask[:, ends]
        with torch.autocast(codes.device.type, enabled=False):
            parts = enumerate(codes.float().split(self.levels, dim=1))
            total = torch.stack([self._grown(_to_map(part), i) * _per_map(held[:, i]) for i, part in parts]).sum(dim=0)
        return _to_row(total), held[:, :1].expand(-1, self.levels[-1])

    def draw_noise(self, batch: int, generator: torch.Generator) -> Float[Tensor, "batch numbers"] | None:
        """Returns by what to decide for each picture whether it lacks a scale, and which one."""
        return torch.rand(batch, 2, generator=generator) if self.drop_rate else None

    def _code(
        self, grid: Float[Tensor, "batch dim side side"], quantizer: Quantizer, kept: Bool[Tensor, "batch scales"]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Returns ids and pooled residuals of each scale, and the sum up to each."""
        ids, residuals, sums, total = [], [], [], torch.zeros_like(grid)
        for index, scale in enumerate(self.scales):
            rest = grid - total.detach()
            # The last scale is not pooled: pooling to the same size would cost time alone.
            pooled = rest if scale == self.scales[-1] else F.interpolate(rest, size=(scale, scale), mode="area")
            residuals.append(_to_row(pooled))
            with standing_still(quantizer), torch.no_grad():
                ids.append(quantizer(residuals[-1]).ids)
            total = total + self._grown(_to_map(quantizer.lookup(ids[-1])), index) * _per_map(kept[:, index])
            sums.append(total)
        return ids, residuals, sums

    def _grown(self, codes: Float[Tensor, "batch dim side side"], index: int) -> Float[Tensor, "batch dim rows rows"]:
        """Returns what the codes of a scale add on the grid."""
        side = self.scales[-1]
        if self.scales[index] != side:
            codes = F.interpolate(codes, size=(side, side), mode="bicubic")
        if not self.phi:
            return codes
        return 0.5 * codes + 0.5 * self.phi[self.phi_of[index]](codes)

    def _losses(
        self, grid: Tensor, sums: Float[Tensor, "scales batch dim side side"], kept: Tensor
    ) -> dict[str, Tensor]:
        if not self.commitment:
            return {}
        errors = self.commitment * (sums.detach() - grid).square() + (sums - grid.detach()).square()
        return {"scales": (errors.mean(dim=(2, 3, 4)) * kept.T).sum() / kept.sum()}

    def _kept(self, grid: Tensor, noise: Tensor | None) -> Bool[Tensor, "batch scales"]:
        """Returns which scales each picture has: all, but for the one that its noise takes away."""
        numbers = torch.arange(len(self.scales), device=grid.device).expand(len(grid), -1)
        if noise is None or not self.training:
            return numbers >= 0
        lacking = 1 + (noise[:, 1:] * (len(self.scales) - 1)).long()
        return (noise[:, :1] >= self.drop_rate) | (numbers != lacking)


def _doubling(side: int) -> tuple[int, ...]:
    return (*(2**power for power in range((side - 1).bit_length())), side)


def _shared(num_scales: int, num_phi: int) -> list[int]:
    """Returns which convolution each scale has: the one whose tick on the line from first to last scale is nearest."""
    if num_phi == 0:
        return []
    # VAR's ticks lie closer to the ends where there are four. Of its ten scales two lie halfway between two ticks, so
    # only the same rounding finds the same convolution.
    margin = 1 / 3 / num_phi if num_phi == 4 else 1 / 2 / num_phi
    ticks = np.linspace(margin, 1 - margin, num_phi)
    places = [index / max(num_scales - 1, 1) for index in range(num_scales)]
    return [int(np.argmin(np.abs(ticks - place))) for place in places]


def _per_map(flags: Bool[Tensor, " batch"]) -> Bool[Tensor, "batch 1 1 1"]:
    return rearrange(flags, "b -> b 1 1 1")


def _to_map(row: Float[Tensor, "batch cells dim"]) -> Float[Tensor, "batch dim side side"]:
    return rearrange(row, "b (h w) d -> b d h w", h=round(row.shape[1] ** 0.5))


def _to_row(cells: Float[Tensor, "batch dim side side"]) -> Float[Tensor, "batch cells dim"]:
    return rearrange(cells, "b d h w -> b (h w) d")
