"""How like the true pictures rebuilt ones are, in pixels and to a network."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from rebus.evaluation.perceptual import FeatureNetwork, perceptual_distance

_BATCH_SIZE = 64


@torch.no_grad()
def likeness(
    rebuilt: Float[Tensor, "batch 3 height width"],
    images: Float[Tensor, "batch 3 height width"],
    network: FeatureNetwork | None,
) -> dict[str, float]:
    """Returns ``psnr_db``, ``ssim`` and ``perceptual`` distance of pictures in [0, 1]; without a network, not the last.

    All are means over the pictures.
    """
    similarity = structural_similarity_index_measure(rebuilt, images, data_range=1.0)
    assert isinstance(similarity, Tensor)
    figures = {
        "psnr_db": peak_signal_noise_ratio(rebuilt, images, data_range=1.0, dim=(1, 2, 3)).item(),
        "ssim": similarity.item(),
    }
    if network is None:
        return figures
    parts = zip(rebuilt.split(_BATCH_SIZE), images.split(_BATCH_SIZE), strict=True)
    distances = torch.cat([perceptual_distance(*part, network) for part in parts])
    return {**figures, "perceptual": distances.mean().item()}
