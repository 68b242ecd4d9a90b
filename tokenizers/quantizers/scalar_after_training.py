"""Scalar quantization after training: each channel of a trained continuous feature becomes one of a few fixed values.

Source: Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (TokenBridge),
https://arxiv.org/abs/2503.16430, sec. 3.2, and its published code.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, replace_by_random_codes, usage_stats_of_streams


@dataclass(frozen=True, kw_only=True)
class ScalarAfterTrainingConfig:
    """Fixed values for features whose channels are about normal with a standard deviation of ``reach / spread``."""

    dim: int = 16
    """Channels, each a stream of its own."""
    levels: int = 64
    """Values of a channel."""
    reach: float = 5.0
    """Largest feature, of either sign, that is told from larger ones."""
    spread: float = 3.0
    """The same in standard deviations of the normal distribution that the levels share out evenly."""

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels must be two or more, got {self.levels}")
        if not (self.reach > 0 and self.spread > 0):
            raise ValueError(f"reach and spread must be positive, got {self.reach} and {self.spread}")

    def build(self) -> "ScalarAfterTraining":
        """Builds the quantizer."""
        return ScalarAfterTraining(self)


class ScalarAfterTraining(nn.Module):
    """Rounds each channel to the nearest of values that a normal distribution would use about equally often.

    The distribution is cut into parts of equal probability; a value is the mean of the distribution within its part,
    the outermost cut off at ``spread``. Nothing is learned.

    Differs: the published code compares each feature with all values; here the middles between values are searched.
    """

    values: Tensor
    middles: Tensor

    def __init__(self, config: ScalarAfterTrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_sizes = (config.levels,) * config.dim
        values = _normal_means(config.levels, config.spread) * (config.reach / config.spread)
        self.register_buffer("values", values.float(), persistent=False)
        self.register_buffer("middles", ((values[1:] + values[:-1]) / 2).float(), persistent=False)

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`."""
        features = features.float()
        ids = torch.bucketize(features.detach(), self.middles)
        quantized = features + (self.values[ids] - features).detach()
        return Quantized(quantized, ids, losses={}, stats=usage_stats_of_streams(ids, self.codebook_sizes, mask))

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the values that codes stand for."""
        return self.values[ids]

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces each code with probability ``rate`` by a random one."""
        return replace_by_random_codes(ids, self.codebook_sizes, rate, generator)


def _normal_means(levels: int, spread: float) -> Float[Tensor, " levels"]:
    """Returns the mean of the standard normal distribution within each of its parts of equal probability."""
    edges = torch.special.ndtri(torch.linspace(0, 1, levels + 1, dtype=torch.float64)).clamp(-spread, spread)
    density = torch.exp(-edges.square() / 2) / (2 * torch.pi) ** 0.5
    return -density.diff() / torch.special.ndtr(edges).diff()
