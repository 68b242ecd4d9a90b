"""Product quantization: the channels are shared out in groups, each with a quantizer of its own.

Source: Ma et al., "UniTok: A Unified Tokenizer for Visual Generation and Understanding",
https://arxiv.org/abs/2502.20321, sec. 3 (multi-codebook quantization).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, Quantizer, mean_terms, registered
from rebus.tokenizers.quantizers.residual import ResidualConfig
from rebus.tokenizers.quantizers.side_by_side import lookup_each, perturb_each, quantize_each
from rebus.tokenizers.quantizers.simple import SimpleConfig


@dataclass(frozen=True, kw_only=True)
class ProductConfig:
    """Several quantizers of one kind side by side."""

    quantizer: SimpleConfig | ResidualConfig
    """What codes each group of channels."""
    groups: int
    """Groups; the streams are those of the first, then those of the second and so on."""

    def build(self) -> "Product":
        """Builds the quantizer."""
        return Product([self.quantizer.build() for _ in range(self.groups)])


class Product(nn.Module):
    """Codes each group of channels by itself; every term is the mean over groups.

    Raises:
        ValueError: if there is no group.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("groups must be 1 or more, got 0")
        self.parts: Sequence[Quantizer] = registered(parts)
        self.dim = sum(part.dim for part in parts)
        self.codebook_sizes = tuple(size for part in parts for size in part.codebook_sizes)

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`."""
        outcomes = quantize_each(self.parts, features, mask)
        return Quantized(
            torch.cat([outcome.features for outcome in outcomes], dim=-1),
            torch.cat([outcome.ids for outcome in outcomes], dim=-1),
            mean_terms([outcome.losses for outcome in outcomes]),
            mean_terms([outcome.stats for outcome in outcomes]),
        )

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features that codes stand for."""
        return lookup_each(self.parts, ids)

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces codes by wrong ones, as the quantizer of their group does."""
        return perturb_each(self.parts, ids, rate, generator)
