"""Quantizers in turn: the first positions of a picture are coded by one, the rest by another, in a single stream.

Source: Huang et al., "ILLUME+: Illuminating Unified MLLM with Dual Visual Tokenization and Diffusion Refinement",
https://arxiv.org/abs/2504.01934, sec. 3.1 (semantic codes of a coarse grid, then pixel codes of a fine one).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, Quantizer
from rebus.tokenizers.quantizers.simple import SimpleConfig


@dataclass(frozen=True, kw_only=True)
class InTurnConfig:
    """Two quantizers of one width and one stream each."""

    num_first: int
    """Positions that the first one codes."""
    first: SimpleConfig
    """What codes those positions; its codes come first in the code book."""
    rest: SimpleConfig
    """What codes the positions after them; its codes follow those of the first."""

    def build(self) -> "InTurn":
        """Builds the quantizer."""
        return InTurn(self.num_first, self.first.build(), self.rest.build())


class InTurn(nn.Module):
    """Codes positions by one of two quantizers; the terms of both count, under the names of the fields.

    A code alone tells whose it is, so that ``lookup`` takes codes at any position, as a table of all codes needs it;
    ``check_positions`` tells whether they may stand where they do.

    Raises:
        ValueError: if there are no first positions or the quantizers have different widths or several streams.
    """

    def __init__(self, num_first: int, first: Quantizer, rest: Quantizer) -> None:
        super().__init__()
        if num_first < 1:
            raise ValueError(f"num_first must be 1 or more, got {num_first}")
        if first.dim != rest.dim:
            raise ValueError(f"first and rest must have one width, got {first.dim} and {rest.dim}")
        sizes = first.codebook_sizes + rest.codebook_sizes
        if len(sizes) != 2:
            raise ValueError(f"first and rest must have one stream each, got code books of {sizes}")
        self.num_first = num_first
        self.first, self.rest = first, rest
        self.dim = first.dim
        self.num_first_codes = sizes[0]
        self.codebook_sizes = (sum(sizes),)

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`.

        Raises:
            ValueError: if there are no positions after the first ones.
        """
        number = self.num_first
        if features.shape[1] <= number:
            raise ValueError(f"positions must be more than the first {number}, got {features.shape[1]}")
        masks = (None, None) if mask is None else (mask[:, :number], mask[:, number:])
        first, rest = self.first(features[:, :number], masks[0]), self.rest(features[:, number:], masks[1])
        outcomes = {"first": first, "rest": rest}
        return Quantized(
            torch.cat([first.features, rest.features], dim=1),
            torch.cat([first.ids, rest.ids + self.num_first_codes], dim=1),
            {f"{name}_{term}": value for name, one in outcomes.items() for term, value in one.losses.items()},
            {f"{name}_{term}": value for name, one in outcomes.items() for term, value in one.stats.items()},
        )

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features that codes stand for, at any position."""
        is_first = ids < self.num_first_codes
        first = self.first.lookup(ids.where(is_first, 0))
        return first.where(is_first, self.rest.lookup((ids - self.num_first_codes).clamp_min(0)))

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces codes by wrong ones of the same quantizer, as it does."""
        first = self.first.perturb(ids[:, : self.num_first], rate, generator)
        own = ids[:, self.num_first :]
        rest = self.rest.perturb((own - self.num_first_codes).where(own >= 0, -1), rate, generator)
        return torch.cat([first, (rest + self.num_first_codes).where(own >= 0, -1)], dim=1)

    def check_positions(self, ids: Int[Tensor, "batch positions streams"]) -> None:
        """Refuses codes of one quantizer at positions of the other; see `KnowsPositions`.

        Raises:
            ValueError: if there are such codes.
        """
        size, total = self.num_first_codes, self.codebook_sizes[0]
        parts = ((ids[:, : self.num_first], 0, size), (ids[:, self.num_first :], size, total))
        for name, (own, low, high) in zip(("the first", "the other"), parts, strict=True):
            wrong = own[(own != -1) & ((own < low) | (own >= high))]
            if len(wrong):
                raise ValueError(f"codes of {name} positions must lie in [{low}, {high}), got {int(wrong[0])}")
