"""Features of the encoder to the channels that are quantized: all of them mixed, or each branch from its own."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LinearProjectionConfig:
    """One matrix, which passes on the first features at first: those of a fresh encoder are the most telling ones."""

    def build(self, dim: int, code_dim: int) -> nn.Module:
        """Builds the projection."""
        return _linear(dim, code_dim)


@dataclass(frozen=True, kw_only=True)
class BranchProjectionConfig:
    """A small network for each branch of a parallel quantizer, which may read features of its own."""

    code_dims: tuple[int, ...]
    """Channels of each branch."""
    reads: tuple[tuple[int, int], ...] = ()
    """First feature that each branch reads, and the one after its last; all features by default."""
    hidden_dim: int = 256
    """Width of the networks."""

    def build(self, dim: int, code_dim: int) -> "BranchProjection":
        """Builds the projection.

        Raises:
            ValueError: if the branches have other channels than the quantizer, or one reads what is not there.
        """
        if sum(self.code_dims) != code_dim:
            raise ValueError(f"code_dims must add up to the quantizer's {code_dim}, got {self.code_dims}")
        reads = self.reads or ((0, dim),) * len(self.code_dims)
        if len(reads) != len(self.code_dims) or any(not 0 <= start < stop <= dim for start, stop in reads):
            raise ValueError(f"reads must be {len(self.code_dims)} ranges within 0..{dim}, got {reads}")
        return BranchProjection(reads, self)


class BranchProjection(nn.Module):
    """A matrix and a network side by side for each branch; the network is silent at first.

    Source: Bai et al., "Factorized Visual Tokenization and Generation", https://arxiv.org/abs/2411.16681, sec. 3.2
    (adapters after a shared encoder); Song et al., "DualToken", https://arxiv.org/abs/2503.14324, sec. 3.2 (branches
    that read different depths of it).
    Differs: adapters work position by position, where those of FQGAN are transformers.
    """

    def __init__(self, reads: tuple[tuple[int, int], ...], config: BranchProjectionConfig) -> None:
        super().__init__()
        self.reads = reads
        widths = [stop - start for start, stop in reads]
        sizes = list(zip(widths, config.code_dims, strict=True))
        self.matrices = nn.ModuleList(_linear(width, code_dim) for width, code_dim in sizes)
        self.networks = nn.ModuleList(_network(width, config.hidden_dim, code_dim) for width, code_dim in sizes)

    def forward(self, features: Float[Tensor, "batch positions dim"]) -> Float[Tensor, "batch positions code_dim"]:
        """Returns the channels of all branches, one after the other."""
        branches = zip(self.reads, self.matrices, self.networks, strict=True)
        read = [(features[..., start:stop], matrix, network) for (start, stop), matrix, network in branches]
        return torch.cat([matrix(part) + network(part) for part, matrix, network in read], dim=-1)


def _linear(dim: int, code_dim: int) -> nn.Linear:
    linear = nn.Linear(dim, code_dim)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _network(dim: int, hidden_dim: int, code_dim: int) -> nn.Sequential:
    last = nn.Linear(hidden_dim, code_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden_dim), nn.GELU(), last)


ProjectionConfig = LinearProjectionConfig | BranchProjectionConfig
