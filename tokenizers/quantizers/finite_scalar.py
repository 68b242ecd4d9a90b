"""Finite scalar quantization: each channel is rounded to one of a few levels, so no code book is learned.

Source: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", https://arxiv.org/abs/2309.15505, sec. 3.1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, replace_by_random_codes, usage_stats


@dataclass(frozen=True, kw_only=True)
class FiniteScalarConfig:
    """The levels of a finite scalar quantizer."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels of each channel; their product is the code-book size."""

    def build(self) -> "FiniteScalar":
        """Builds the quantizer."""
        return FiniteScalar(self.levels)


class FiniteScalar(nn.Module):
    """Rounds each channel of a bounded feature to one of ``levels[channel]`` values.

    Raises:
        ValueError: if a channel has fewer than two levels.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels must be two or more for every channel, got {levels}")
        self.dim = len(levels)
        self.codebook_sizes = (math.prod(levels),)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = torch.cumprod(torch.tensor((1, *levels[:-1])), dim=0)
        self.register_buffer("basis", basis, persistent=False)

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features of about unit spread; see `Quantizer`."""
        with torch.autocast(features.device.type, enabled=False):
            bounded = self._bound(features.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = rounded.detach().round().long() + self.levels // 2
        ids = (digits * self.basis).sum(dim=-1, keepdim=True)
        stats = usage_stats(ids[..., 0], self.codebook_sizes[0], mask)
        return Quantized(rounded / (self.levels // 2), ids, losses={}, stats=stats)

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the rounded features, in [-1, 1], that codes stand for."""
        digits = (ids // self.basis) % self.levels
        return (digits - self.levels // 2).float() / (self.levels // 2)

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces each code with probability ``rate`` by a random one."""
        return replace_by_random_codes(ids, self.codebook_sizes, rate, generator)

    def _bound(self, features: Tensor) -> Tensor:
        # A little more than the outermost level, so that tanh need not saturate to reach it.
        half_width = (self.levels - 1) * (1 + 1e-3) / 2
        # An even number of levels has no middle one: its range moves down by half a step.
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half_width)
        return torch.tanh(features + shift) * half_width - offset
