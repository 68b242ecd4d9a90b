"""Vector quantization: each feature is replaced by the nearest vector of a code book that follows the features.

Source: van den Oord et al., "Neural Discrete Representation Learning", https://arxiv.org/abs/1711.00937, sec. 3.1
and appendix A.1 (moving averages).
"""

from dataclasses import dataclass

import torch
import torch.distributed as distributed
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, replace_by_random_codes, usage_stats

SEARCH_CHUNK = 4096
"""Vectors compared with the code book at once: bounds memory at chunk x code-book size."""


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """A code book kept by moving averages."""

    codebook_size: int = 2048
    """Number of codes."""
    dim: int = 32
    """Width of a code; features are projected to it."""
    decay: float = 0.99
    """Share of the moving averages that a step keeps."""
    commitment: float = 0.25
    """Weight of the term that pulls features to their code."""
    restart_below: float = 0.01
    """A code with a smaller moving count of features per step is moved to a feature that the code book serves badly."""

    def build(self) -> "VectorQuantizer":
        """Builds the quantizer."""
        return VectorQuantizer(self.codebook_size, self.dim, self.decay, self.commitment, self.restart_below)


class VectorQuantizer(nn.Module):
    """Replaces each feature by the nearest code.

    All codes count as dead at first, so the first batches of a training place them on features of real pictures. The
    code book and its moving averages are float32 buffers: bf16 would never move an average of decay 0.99.

    Differs: a dead code moves to the features with the largest error rather than to random ones, so that most do not
    pile up on the plain ground that fills most of a picture.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codebook_size: int, dim: int, decay: float, commitment: float, restart_below: float) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_sizes = (codebook_size,)
        self.decay = decay
        self.commitment = commitment
        self.restart_below = restart_below
        vectors = torch.randn(codebook_size, dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("codebook", vectors)
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, dim))

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features and, in training, moves the code book; see `Quantizer`."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            ids = self._nearest(features.detach().flatten(0, 1)).view(features.shape[:-1])
        codes = self.codebook[ids]
        errors = (features - codes).square().mean(dim=-1)
        known = torch.ones_like(ids, dtype=torch.float32) if mask is None else mask.float()
        commitment = (errors * known).sum() / known.sum()
        if self.training:
            self._follow(features.detach().flatten(0, 1), ids.flatten(), known.flatten(), errors.detach().flatten())
        quantized = features + (codes - features).detach()
        stats = usage_stats(ids, self.codebook_sizes[0], mask)
        return Quantized(quantized, ids[..., None], {"commitment": self.commitment * commitment}, stats)

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the vectors that codes stand for."""
        return self.codebook[ids[..., 0]]

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces each code with probability ``rate`` by a random one."""
        return replace_by_random_codes(ids, self.codebook_sizes, rate, generator)

    def _nearest(self, features: Float[Tensor, "vectors dim"]) -> Int[Tensor, " vectors"]:
        # |f - e|^2 is least where f.e - |e|^2 / 2 is largest: one matrix product, no distances.
        halves = self.codebook.square().sum(dim=-1) / 2
        return torch.cat([(part @ self.codebook.T - halves).argmax(dim=-1) for part in features.split(SEARCH_CHUNK)])

    @torch.no_grad()
    def _follow(
        self,
        features: Float[Tensor, "vectors dim"],
        ids: Int[Tensor, " vectors"],
        known: Float[Tensor, " vectors"],
        errors: Float[Tensor, " vectors"],
    ) -> None:
        counts = torch.zeros_like(self.counts).index_add_(0, ids, known)
        sums = torch.zeros_like(self.sums).index_add_(0, ids, features * known[:, None])
        worst_first = (errors * known).argsort(descending=True)
        candidates = features[worst_first[torch.arange(len(counts), device=ids.device) % len(ids)]]
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
            distributed.broadcast(candidates, src=0)
        self.counts.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        dead = self.counts < self.restart_below
        moved = candidates[(dead.cumsum(0) - 1).clamp_min(0)]
        # Twice the limit: at a decay of 0.99 a moved code has 70 steps to gather a feature of its own.
        weight = 2 * self.restart_below
        self.sums.copy_(torch.where(dead[:, None], weight * moved, self.sums))
        self.counts.copy_(torch.where(dead, weight, self.counts))
        self.codebook.copy_(self.sums / self.counts[:, None])
