"""How far apart two sets of pictures are as a whole, which sees the blur that pixel errors reward.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
https://arxiv.org/abs/1706.08500, sec. 3 (FID).
Differs: features of EfficientNet-Lite0 instead of Inception, and the matrix root by a nuclear norm: figures compare
with each other, over as many pictures, not with published FID.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.evaluation.perceptual import FeatureNetwork

_BATCH_SIZE = 64


def frechet_distance(features: Float[Tensor, "rows dim"], others: Float[Tensor, "others dim"]) -> float:
    """Returns the squared Frechet distance of the Gaussians that have the means and covariances of two sets of rows.

    The rows of each set, centred, are a root A of its covariance A'A, and the trace of the root of the product of two
    covariances is the sum of the singular values of A B': no matrix root is taken, which would fail where there are
    fewer rows than features.

    Raises:
        ValueError: if there are fewer than two rows in a set.
    """
    if min(len(features), len(others)) < 2:
        raise ValueError(f"features must be of at least 2 pictures, got {len(features)} and {len(others)}")
    (mean, root), (other_mean, other_root) = _moments(features), _moments(others)
    shared = torch.linalg.svdvals(root @ other_root.T).sum()
    distance = (mean - other_mean).square().sum() + root.square().sum() + other_root.square().sum() - 2 * shared
    return max(0.0, distance.item())


@torch.no_grad()
def pooled_features(
    images: Float[Tensor, "batch 3 height width"], network: FeatureNetwork
) -> Float[Tensor, "batch dim"]:
    """Returns the deepest features of pictures in [0, 1], averaged over places."""
    return torch.cat([network(part)[-1].mean(dim=(2, 3)) for part in images.split(_BATCH_SIZE)])


def _moments(features: Float[Tensor, "rows dim"]) -> tuple[Float[Tensor, " dim"], Float[Tensor, "rank dim"]]:
    """Returns the mean of rows and a root of their covariance, with no more rows than features."""
    rows = features.double()
    mean = rows.mean(dim=0)
    _, root = torch.linalg.qr((rows - mean) / (len(rows) - 1) ** 0.5, mode="r")
    return mean, root
