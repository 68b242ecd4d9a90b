"""Rebuilt pictures shall look like the true ones to a network that has learned to see.

Sources: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS),
https://arxiv.org/abs/1801.03924, eq. 1; Gatys et al., "Image Style Transfer Using Convolutional Neural Networks",
CVPR 2016, eqs. 3-5 (Gram matrices), as in Lu et al., "AToken", https://arxiv.org/abs/2509.14476, sec. 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.tokenizers.supervision.contract import Taught, Term
from rebus.tokenizers.supervision.feature_networks import FeatureNetwork, FeatureNetworkConfig


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """Whose eyes are borrowed, and what is compared."""

    network: FeatureNetworkConfig
    """The network that looks at both pictures."""
    weight: float = 1.0
    """Weight of the distance between features, place by place."""
    gram: float = 0.0
    """Weight of the distance between the correlations of channels: texture, wherever it is."""

    def build(self) -> "Perceptual":
        """Loads the network and builds the term."""
        return Perceptual(self.network.build(), self.weight, self.gram)


class Perceptual(Term):
    """Distance of a frozen network's features of the rebuilt picture from those of the true one."""

    compiles_whole = False

    def __init__(self, network: FeatureNetwork, weight: float, gram: float = 0.0) -> None:
        super().__init__()
        self.network, self.weight, self.gram = network, weight, gram

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns ``perceptual`` and ``gram``, as far as they weigh."""
        with torch.no_grad():
            true = self.network(taught.images)
        rebuilt = self.network(taught.rebuilt)
        losses = {}
        if self.weight:
            weights = self.network.channel_weights()
            parts = [feature_distance(*three) for three in zip(rebuilt, true, weights, strict=True)]
            losses["perceptual"] = self.weight * torch.stack(parts).sum()
        if self.gram:
            parts = [gram_distance(*two) for two in zip(rebuilt, true, strict=True)]
            losses["gram"] = self.gram * torch.stack(parts).sum()
        return losses


def feature_distance(
    features: Float[Tensor, "batch places channels"],
    target: Float[Tensor, "batch places channels"],
    weights: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, ""]:
    """Returns the squared distance of features of unit length, the mean over places and pictures."""
    squares = (_unit(features) - _unit(target)).square()
    return (squares if weights is None else squares * weights).sum(dim=-1).mean()


def gram_distance(
    features: Float[Tensor, "batch places channels"], target: Float[Tensor, "batch places channels"]
) -> Float[Tensor, ""]:
    """Returns the squared distance of Gram matrices, each a mean over the places, the mean over channels' pairs."""
    return (_gram(features) - _gram(target)).square().mean()


def _unit(features: Tensor) -> Tensor:
    # Where nothing is seen, the root of the squares has no gradient: rectified features are often all zero.
    return features * (features.square().sum(dim=-1, keepdim=True) + 1e-10).rsqrt()


def _gram(features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return features.transpose(1, 2) @ features / features.shape[1]
