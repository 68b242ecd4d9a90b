"""No quantization: features pass as they are, or as draws from normal distributions kept near the standard one.

For comparison with codes, and for tokenizers with continuous features. Source of the draw: Kingma and Welling,
"Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114, sec. 2.4 and appendix B.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized
from rebus.tokenizers.quantizers.known_positions import known_positions


@dataclass(frozen=True, kw_only=True)
class ContinuousConfig:
    """Features without codes."""

    dim: int = 16
    """Width of a feature."""
    kl: float = 0.0
    """Weight of the divergence, in nats a channel, from the standard normal distribution; 0: there is no draw."""

    def build(self) -> "Continuous":
        """Builds what stands for a quantizer."""
        return Continuous(self)


class Continuous(nn.Module):
    """Passes features on; there are no codes, so ids have no streams.

    With a divergence, features are turned into means and logarithms of variances; training draws, encoding takes the
    mean. The mean of a fresh model is the feature itself, with a standard deviation of 0.05.
    """

    def __init__(self, config: ContinuousConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_sizes: tuple[int, ...] = ()
        self.moments = None
        if config.kl:
            self.moments = nn.Linear(config.dim, 2 * config.dim)
            nn.init.eye_(self.moments.weight)
            nn.init.zeros_(self.moments.bias[: config.dim])
            nn.init.constant_(self.moments.bias[config.dim :], -6.0)

    def forward(
        self,
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "batch positions"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Passes features on; see `Quantizer`.

        Args:
            features: of each position.
            mask: which of them count.
            generator: for the draw in training; torch's own by default.
        """
        losses = {}
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.moments is not None:
                moments = rearrange(self.moments(features), "b p (two dim) -> two b p dim", two=2)
                means, logarithms = moments[0], moments[1].clamp(-30, 20)
                known = known_positions(features, mask, shared=self.training)
                each = (means.square() + logarithms.exp() - logarithms - 1).mean(dim=-1) / 2
                losses["kl"] = self.config.kl * (each * known.weights).sum() / known.count
                features = means
                if self.training:
                    noise = torch.randn(means.shape, generator=generator).to(means.device)
                    features = means + noise * (logarithms / 2).exp()
        ids = torch.empty(*features.shape[:-1], 0, dtype=torch.long, device=features.device)
        return Quantized(features, ids, losses, stats={})

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Refuses to look anything up.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"features that are not quantized have no codes to look up, got ids of {tuple(ids.shape)}")

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Returns the ids, of which there are none."""
        del rate, generator
        return ids
