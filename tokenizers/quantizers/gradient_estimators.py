"""How a gradient passes from a code to the feature that it replaces: rounding itself has none."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

GradientEstimator = Literal["straight_through", "rotation"]
"""See the functions of these names."""
_LEAST_LENGTH = 1e-6
"""What lengths are divided by at least."""


def straight_through(
    features: Float[Tensor, "*batch dim"], codes: Float[Tensor, "*batch dim"]
) -> Float[Tensor, "*batch dim"]:
    """Returns codes whose gradient is that of the features, as if each had only been moved to its code.

    Source: van den Oord et al., "Neural Discrete Representation Learning", https://arxiv.org/abs/1711.00937, sec. 3.2.
    """
    return features + (codes - features).detach()


def rotation(features: Float[Tensor, "*batch dim"], codes: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Returns codes whose gradient turns and stretches with the feature, as if it had been rotated onto its code.

    Source: Fifty et al., "Restructuring Vector Quantization with the Rotation Trick",
    https://arxiv.org/abs/2410.06424, sec. 4.2.
    Differs: no length divides below 1e-6, which the published code leaves to chance where a code is opposite to its
    feature; the values are the codes themselves, not the feature rotated in float32.
    """
    codes = codes.detach()
    source, target = (F.normalize(each.detach(), dim=-1, eps=_LEAST_LENGTH) for each in (features, codes))
    middle = F.normalize(source + target, dim=-1, eps=_LEAST_LENGTH)
    stretch = codes.norm(dim=-1, keepdim=True) / features.detach().norm(dim=-1, keepdim=True).clamp_min(_LEAST_LENGTH)
    reflected = features - 2 * _product(features, middle) * middle
    rotated = stretch * (reflected + 2 * _product(features, source) * target)
    return codes + (rotated - rotated.detach())


def check_estimator(estimator: GradientEstimator, dim: int) -> None:
    """Refuses an estimator that features of a width leave no room for.

    Raises:
        ValueError: if there is nothing to rotate in.
    """
    if estimator == "rotation" and dim < 2:
        raise ValueError(f"dim must be at least 2 for the estimator 'rotation', got {dim}")


def pass_gradients(
    features: Float[Tensor, "*batch dim"], codes: Float[Tensor, "*batch dim"], estimator: GradientEstimator
) -> Float[Tensor, "*batch dim"]:
    """Returns the codes with a gradient for the features, none for themselves."""
    codes = codes.detach()
    return rotation(features, codes) if estimator == "rotation" else straight_through(features, codes)


def _product(one: Float[Tensor, "*batch dim"], other: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 1"]:
    return torch.linalg.vecdot(one, other).unsqueeze(-1)
