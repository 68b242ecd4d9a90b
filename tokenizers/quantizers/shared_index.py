"""A shared index: several tables, one for each part of the features, whose rows are chosen together by one code.

Source: Qu et al., "TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation",
https://arxiv.org/abs/2412.03069, sec. 3.1 (shared mapping).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, Quantizer
from rebus.tokenizers.quantizers.vector import VectorConfig


@dataclass(frozen=True, kw_only=True)
class SharedIndexConfig:
    """Tables of equal length that are searched as one."""

    quantizer: VectorConfig
    """The code book that the tables make side by side; as wide as all of them."""
    dims: tuple[int, ...] = (32, 8)
    """Width of each table: TokenFlow's are one for meaning and one for pixels."""
    weights: tuple[float, ...] = (1.0, 1.0)
    """What the squared distance in each table counts in the choice of a row."""

    def build(self) -> "SharedIndex":
        """Builds the quantizer."""
        return SharedIndex(self.quantizer.build(), self.dims, self.weights)


class SharedIndex(nn.Module):
    """Cuts features into parts of unit length and finds the row that is nearest in all tables together.

    A weighted sum of squared distances is the squared distance of parts times the roots of their weights: the tables
    are one code book of such parts.

    Differs: TokenFlow keeps the rows of each table at unit length, too; here they are as the code book learns them.

    Raises:
        ValueError: if there is not one weight above 0 for each table, or they are not as wide as the code book.
    """

    factors: Tensor

    def __init__(self, quantizer: Quantizer, dims: tuple[int, ...], weights: tuple[float, ...]) -> None:
        super().__init__()
        if not dims or len(weights) != len(dims) or min(weights) <= 0:
            raise ValueError(f"weights must be one above 0 for each of {len(dims)} tables, got {weights}")
        if sum(dims) != quantizer.dim:
            raise ValueError(f"dims must add up to the {quantizer.dim} of the code book, got {dims}")
        self.quantizer = quantizer
        self.dims = dims
        self.dim = quantizer.dim
        self.codebook_sizes = quantizer.codebook_sizes
        parts = zip(weights, dims, strict=True)
        factors = torch.tensor([weight**0.5 for weight, dim in parts for _ in range(dim)])
        self.register_buffer("factors", factors, persistent=False)

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`."""
        parts = [F.normalize(part, dim=-1) for part in features.float().split(self.dims, dim=-1)]
        together = self.quantizer(torch.cat(parts, dim=-1) * self.factors, mask)
        return Quantized(together.features / self.factors, together.ids, together.losses, together.stats)

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the rows of all tables, side by side, that codes stand for."""
        return self.quantizer.lookup(ids) / self.factors

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces codes by wrong ones, as the code book does."""
        return self.quantizer.perturb(ids, rate, generator)
