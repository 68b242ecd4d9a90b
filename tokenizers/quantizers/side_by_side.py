"""Quantizers side by side: each has channels and streams of its own, in the same order."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rebus.tokenizers.quantizers.contract import Quantized, Quantizer


def quantize_each(
    parts: Iterable[Quantizer],
    features: Float[Tensor, "batch positions dim"],
    mask: Bool[Tensor, "batch positions"] | None,
) -> list[Quantized]:
    """Returns what each quantizer makes of its channels."""
    channels = features.split([part.dim for part in parts], dim=-1)
    return [part(own, mask) for part, own in zip(parts, channels, strict=True)]


def lookup_each(
    parts: Iterable[Quantizer], ids: Int[Tensor, "batch positions streams"]
) -> Float[Tensor, "batch positions dim"]:
    """Returns the features that the codes of each quantizer stand for, as channels."""
    own_ids = zip(parts, _streams(parts, ids), strict=True)
    return torch.cat([part.lookup(own) for part, own in own_ids], dim=-1)


def perturb_each(
    parts: Iterable[Quantizer], ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
) -> Int[Tensor, "batch positions streams"]:
    """Replaces codes of each quantizer by wrong ones, as it does."""
    own_ids = zip(parts, _streams(parts, ids), strict=True)
    return torch.cat([part.perturb(own, rate, generator) for part, own in own_ids], dim=-1)


def _streams(parts: Iterable[Quantizer], ids: Tensor) -> tuple[Tensor, ...]:
    return ids.split([len(part.codebook_sizes) for part in parts], dim=-1)
