"""What every quantizer takes and returns, so that one may replace another by a config."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.tokens import Stream


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


@runtime_checkable
class NamesStreams(Protocol):
    """A quantizer whose streams have names of their own."""

    stream_names: tuple[str, ...]
    """One for each stream, distinct."""


@runtime_checkable
class KnowsPositions(Protocol):
    """A quantizer that codes some positions otherwise than others."""

    def check_positions(self, ids: Int[Tensor, "batch positions streams"]) -> None:
        """Refuses codes that cannot stand at their position; missing codes (-1) may stand anywhere.

        Raises:
            ValueError: if there are such codes.
        """
        ...


def streams_of(quantizer: Quantizer) -> tuple[Stream, ...]:
    """Returns the streams of a quantizer's codes, by its own names or as ``codes_0``, ``codes_1`` and so on."""
    sizes = quantizer.codebook_sizes
    names = quantizer.stream_names if isinstance(quantizer, NamesStreams) else [f"codes_{i}" for i in range(len(sizes))]
    return tuple(Stream(name, size) for name, size in zip(names, sizes, strict=True))


def registered(quantizers: Sequence[Quantizer]) -> Any:
    """Returns quantizers as a list through which a module owns their parameters."""
    modules: Any = quantizers
    return nn.ModuleList(modules)


def masked_mean(
    values: Float[Tensor, "batch positions"], mask: Bool[Tensor, "batch positions"] | None
) -> Float[Tensor, ""]:
    """Returns the mean over the positions that count; 0 if there are none."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp_min(1)


def mean_terms(terms: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean of each term over quantizers that all have the same ones."""
    return {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}


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
    weights = (torch.ones_like(ids) if mask is None else mask).float().flatten()
    # Sorted, equal codes are runs: so there are no more counts than codes, of a code book of any size.
    ordered, order = ids.flatten().sort()
    runs = F.pad(ordered.diff() != 0, (1, 0)).cumsum(dim=0)
    counts = torch.zeros_like(weights).index_add_(0, runs, weights[order])
    shares = counts / counts.sum().clamp_min(1)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {"code_usage": (counts > 0).sum() / codebook_size, "code_perplexity": entropy.exp()}


def usage_stats_of_streams(
    ids: Int[Tensor, "batch positions streams"],
    codebook_sizes: tuple[int, ...],
    mask: Bool[Tensor, "batch positions"] | None,
) -> dict[str, Tensor]:
    """Returns the means over streams of their ``usage_stats``."""
    columns = zip(ids.unbind(dim=-1), codebook_sizes, strict=True)
    return mean_terms([usage_stats(column, size, mask) for column, size in columns])
