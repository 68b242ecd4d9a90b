"""Parallel branches: one quantizer for each aspect of a picture, such as meaning and pixels, with streams so named.

Sources: Bai et al., "Factorized Visual Tokenization and Generation", https://arxiv.org/abs/2411.16681, sec. 3 (FQGAN:
independent code books and what keeps them apart); Song et al., "DualToken", https://arxiv.org/abs/2503.14324, sec. 3
(residual levels in each branch).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, Quantizer, masked_mean, registered
from rebus.tokenizers.quantizers.product import ProductConfig
from rebus.tokenizers.quantizers.residual import ResidualConfig
from rebus.tokenizers.quantizers.side_by_side import lookup_each, perturb_each, quantize_each
from rebus.tokenizers.quantizers.simple import SimpleConfig


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """One aspect."""

    name: str
    """What its stream is called; with several streams, ``name_0``, ``name_1`` and so on."""
    quantizer: SimpleConfig | ResidualConfig | ProductConfig
    """What codes its channels."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Several quantizers of any kind side by side."""

    branches: tuple[BranchConfig, ...]
    """The aspects; their channels and streams follow one another in this order."""
    disentanglement: float = 0.0
    """Weight of the term that turns the features of branches, all of one width, at right angles to each other."""

    def build(self) -> "Parallel":
        """Builds the quantizer."""
        branches = [(branch.name, branch.quantizer.build()) for branch in self.branches]
        return Parallel(branches, self.disentanglement)


class Parallel(nn.Module):
    """Codes the channels of each branch by its quantizer; the terms of all branches count, under their names.

    Raises:
        ValueError: if there is no branch, two have one name, or branches of several widths are to be disentangled.
    """

    def __init__(self, branches: Sequence[tuple[str, Quantizer]], disentanglement: float) -> None:
        super().__init__()
        self.names = [name for name, _ in branches]
        if not branches or len(set(self.names)) < len(branches):
            raise ValueError(f"branches must be one or more with distinct names, got {self.names}")
        parts = [part for _, part in branches]
        widths = [part.dim for part in parts]
        if disentanglement and (len(parts) < 2 or len(set(widths)) > 1):
            raise ValueError(f"disentanglement must be 0 unless two or more branches have one width, got {widths}")
        self.parts: Sequence[Quantizer] = registered(parts)
        self.disentanglement = disentanglement
        self.dim = sum(widths)
        self.codebook_sizes = tuple(size for part in parts for size in part.codebook_sizes)
        self.stream_names = tuple(
            name if len(part.codebook_sizes) == 1 else f"{name}_{index}"
            for name, part in branches
            for index in range(len(part.codebook_sizes))
        )

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`."""
        outcomes = quantize_each(self.parts, features, mask)
        named = list(zip(self.names, outcomes, strict=True))
        losses = {f"{name}_{term}": value for name, outcome in named for term, value in outcome.losses.items()}
        stats = {f"{name}_{term}": value for name, outcome in named for term, value in outcome.stats.items()}
        quantized = [outcome.features for outcome in outcomes]
        if self.disentanglement:
            losses["disentanglement"] = self.disentanglement * squared_cosines(quantized, mask)
        return Quantized(
            torch.cat(quantized, dim=-1), torch.cat([outcome.ids for outcome in outcomes], dim=-1), losses, stats
        )

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features that codes stand for."""
        return lookup_each(self.parts, ids)

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces codes by wrong ones, as the quantizer of their branch does."""
        return perturb_each(self.parts, ids, rate, generator)


def squared_cosines(
    features: Sequence[Float[Tensor, "batch positions dim"]], mask: Bool[Tensor, "batch positions"] | None
) -> Float[Tensor, ""]:
    """Returns the mean squared cosine between the features of two branches, over all pairs of them."""
    pairs = combinations(features, 2)
    return torch.stack([masked_mean(F.cosine_similarity(*pair, dim=-1).square(), mask) for pair in pairs]).mean()
