"""Codes to features: a learned row for each, or what the image tokenizer knows of it."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.model.code_condition import CodeEmbedding
from rebus.tokenizers.quantizers.contract import Quantizer
from rebus.tokenizers.tokens import CodeLayout


@runtime_checkable
class Features(Protocol):
    """Maps codes to features; a missing code (-1) has one of its own, which is learned."""

    dim: int
    """Width of the features."""

    def __call__(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features of codes."""
        ...


@dataclass(frozen=True, kw_only=True)
class RowFeaturesConfig:
    """Each code has a row that is learned with the decoder; the rows of the streams are added up."""

    dim: int = 768
    """Width of the rows."""

    def build(self, layout: CodeLayout, quantizer: Quantizer) -> "RowFeatures":
        """Builds the rows for codes of a layout; the quantizer is not looked at."""
        return RowFeatures(layout, self.dim)


@dataclass(frozen=True, kw_only=True)
class LookupFeaturesConfig:
    """A code is what the image tokenizer's quantizer holds for it, frozen: like codes are alike from the start.

    Source: Geng et al., "X-Omni", https://arxiv.org/abs/2507.22058 (the decoder reads the vectors of the code book).
    """

    def build(self, layout: CodeLayout, quantizer: Quantizer) -> "LookupFeatures":
        """Builds features that keep the quantizer."""
        return LookupFeatures(quantizer)


FeaturesConfig = RowFeaturesConfig | LookupFeaturesConfig


class RowFeatures(nn.Module):
    """Learned rows of codes."""

    def __init__(self, layout: CodeLayout, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.rows = CodeEmbedding(layout, dim)

    def forward(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the rows; a code that is missing in all streams has one of its own."""
        return self.rows(ids)


class LookupFeatures(nn.Module):
    """Features of a frozen quantizer."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        module: Any = quantizer
        self.dim = quantizer.dim
        self.quantizer = module.requires_grad_(False)
        self.missing = nn.Parameter(torch.zeros(quantizer.dim))

    def forward(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the quantizer's features, and the learned one where a code is missing."""
        known = (ids >= 0).all(dim=-1, keepdim=True)
        features = self.quantizer.lookup(ids.clamp_min(0)).to(self.missing.dtype)
        return torch.where(known, features, self.missing)
