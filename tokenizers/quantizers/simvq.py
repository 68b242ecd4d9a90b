"""Vector quantization with a code book that moves as a whole: fixed random vectors times one learned matrix.

Source: Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer",
https://arxiv.org/abs/2411.02038, sec. 4.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, replace_by_random_codes, usage_stats
from rebus.tokenizers.quantizers.gradient_estimators import GradientEstimator, check_estimator, pass_gradients
from rebus.tokenizers.quantizers.known_positions import known_positions
from rebus.tokenizers.quantizers.nearest import nearest_codes


@dataclass(frozen=True, kw_only=True)
class SimVQConfig:
    """A code book of one learned matrix."""

    codebook_size: int = 16384
    """Number of codes."""
    dim: int = 32
    """Width of a code; features are projected to it."""
    commitment: float = 0.25
    """Weight of the term that pulls features to their code; that which pulls codes has the weight 1."""
    estimator: GradientEstimator = "straight_through"
    """How the gradient passes from a code to its feature."""

    def __post_init__(self) -> None:
        check_estimator(self.estimator, self.dim)

    def build(self) -> "SimVQ":
        """Builds the quantizer."""
        return SimVQ(self)


class SimVQ(nn.Module):
    """Replaces each feature by the nearest row of a fixed random matrix times a learned one.

    A gradient for any code moves all of them, so none is left behind; only ``dim`` x ``dim`` weights are learned.

    Differs: the published code weighs the two terms the other way round, against its own equation, and adds a bias to
    the matrix.
    """

    fixed: Tensor

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_sizes = (config.codebook_size,)
        generator = torch.Generator().manual_seed(0)
        fixed = torch.randn(config.codebook_size, config.dim, generator=generator) * config.dim**-0.5
        self.register_buffer("fixed", fixed)
        self.matrix = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`."""
        known = known_positions(features, mask, shared=self.training)
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            ids = nearest_codes(features.flatten(0, 1), self.vectors()).view(features.shape[:-1])
            codes = self.lookup(ids[..., None])
            losses = {
                "commitment": self.config.commitment * known.mean_square(features, codes.detach()),
                "codebook": known.mean_square(features.detach(), codes),
            }
            quantized = pass_gradients(features, codes, self.config.estimator)
        return Quantized(quantized, ids[..., None], losses, usage_stats(ids, self.codebook_sizes[0], mask))

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the vectors that codes stand for."""
        return self._moved(self.fixed[ids[..., 0]])

    def vectors(self) -> Float[Tensor, "codes dim"]:
        """Returns the code book."""
        return self._moved(self.fixed)

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces each code with probability ``rate`` by a random one."""
        return replace_by_random_codes(ids, self.codebook_sizes, rate, generator)

    def _moved(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        with torch.autocast(vectors.device.type, enabled=False):
            return F.linear(vectors, self.matrix.weight.float())
