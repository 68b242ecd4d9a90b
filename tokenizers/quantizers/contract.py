"""What every quantizer takes and returns, so that one may replace another by a config."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Quantized:
    """The outcome of quantizing a batch of features."""

    features: Float[Tensor, "batch positions dim"]
    """The quantized features; gradients pass straight through to the input."""
    ids: Int[Tensor, "batch positions streams"]
    """The codes, int64, each in ``[0, codebook size of its stream)``."""
    losses: dict[str, Tensor]
    """Terms that the training adds up, by name; empty where the quantizer learns nothing."""
    stats: dict[str, Tensor]
    """Figures to log, detached."""


@runtime_checkable
class Quantizer(Protocol):
    """Maps features to discrete codes and codes back to features, always in float32."""

    codebook_sizes: tuple[int, ...]
    """The number of codes of each stream."""
    dim: int
    """The width of the features."""

    def __call__(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; positions where ``mask`` is False count in no loss and no statistic."""
        ...

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features that codes stand for."""
        ...

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces a share of the codes by wrong ones, as a language model's sampling would."""
        ...


def replace_by_random_codes(
    ids: Int[Tensor, "batch positions streams"],
    codebook_sizes: tuple[int, ...],
    rate: float,
    generator: torch.Generator,
) -> Int[Tensor, "batch positions streams"]:
    """Replaces each code with probability ``rate`` by one drawn uniformly; missing codes (-1) stay missing.

    Source: Qiu et al., "Robust Latent Matters: Boosting Image Generation with Sampling Error Synthesis",
    https://arxiv.org/abs/2503.08354, sec. 3.2.
    Differs: the replacement is any code, not one of the nearest, so that it needs no distances.
    """
    chosen = torch.rand(ids.shape, generator=generator) < rate
    columns = [torch.randint(size, ids.shape[:-1], generator=generator) for size in codebook_sizes]
    random_ids = torch.stack(columns, dim=-1).to(ids.device)
    return torch.where(chosen.to(ids.device) & (ids >= 0), random_ids, ids)


def usage_stats(
    ids: Int[Tensor, "batch positions"], codebook_size: int, mask: Bool[Tensor, "batch positions"] | None
) -> dict[str, Tensor]:
    """Returns the share of the code book that a batch uses and the perplexity of its codes, both from counts."""
    weights = torch.ones(ids.shape, device=ids.device) if mask is None else mask.float()
    counts = torch.zeros(codebook_size, device=ids.device).index_add_(0, ids.flatten(), weights.flatten())
    shares = counts / counts.sum().clamp_min(1)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {"code_usage": (counts > 0).float().mean(), "code_perplexity": entropy.exp()}
