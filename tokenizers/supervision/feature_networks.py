"""Frozen networks that see pictures much as people do: what their layers make of two pictures is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from rebus.tokenizers.stock_model import load_stock
from rebus.tokenizers.supervision.contract import Frozen
from rebus.tokenizers.supervision.taps import Taps
from rebus.tokenizers.supervision.teachers import IMAGENET_MEAN, IMAGENET_STD, Normalize

VGG16_WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
VGG16_LAYERS = ("3", "8", "15", "22", "29")
"""The last rectified convolution of each width, as LPIPS reads them."""


class FeatureNetwork(nn.Module):
    """A frozen network and the layers of it that are read."""

    def __init__(
        self, network: nn.Module, layers: Sequence[str], channel_weights: Sequence[Float[Tensor, "..."]] = ()
    ) -> None:
        """Takes a network of pictures with the mean and spread of ImageNet, and names of its layers.

        Args:
            network: anything that runs on a batch of pictures.
            layers: names of modules in it, each of which puts out a map or a sequence.
            channel_weights: how much each channel of each layer counts in a distance; all as one by default.

        Raises:
            ValueError: if the network has no layer of a name.
        """
        super().__init__()
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.network, self.layers = Frozen(network), tuple(layers)
        self._taps = Taps(network, self.layers)
        self.has_channel_weights = bool(channel_weights)
        for name, weights in zip(self.layers if channel_weights else (), channel_weights, strict=True):
            self.register_buffer(_weights_name(name), weights, persistent=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch ..."]]:
        """Returns what the layers put out for pictures in [0, 1] as ``"batch places channels"``, in float32."""
        self.network(self.normalize(images))
        outputs = self._taps.take()
        return [_places(outputs[name]).float() for name in self.layers]

    def channel_weights(self) -> list[Tensor | None]:
        """Returns how much the channels of each layer count; None where all count as one."""
        if not self.has_channel_weights:
            return [None] * len(self.layers)
        return [self.get_buffer(_weights_name(name)) for name in self.layers]


@dataclass(frozen=True, kw_only=True)
class Vgg16Config:
    """The network of LPIPS: VGG-16, and if they are in the file, the learned weights of its channels.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
    https://arxiv.org/abs/1801.03924, sec. 3.
    """

    path: Path
    """A safetensors file with ``features.0.weight`` ... as torchvision names them; ``lin0.model.1.weight`` ... as
    LPIPS does are taken too if they are there."""

    def build(self) -> FeatureNetwork:
        """Loads the network.

        Raises:
            ValueError: if the file holds no VGG-16.
        """
        network = _vgg16()
        try:
            held = safetensors.torch.load_file(self.path)
            network.load_state_dict({name: held[f"features.{name}"] for name in network.state_dict()})
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self.path} must hold the convolutions of VGG-16: {error}") from error
        names = [f"lin{number}.model.1.weight" for number in range(len(VGG16_LAYERS))]
        return FeatureNetwork(network, VGG16_LAYERS, [held[name].flatten() for name in names if name in held])


@dataclass(frozen=True, kw_only=True)
class StockNetworkConfig:
    """A vision model of ``transformers`` in a folder of the user's, such as ConvNeXt."""

    path: Path
    """Folder with ``config.json`` and safetensors."""
    layers: tuple[str, ...]
    """Names of its layers that are compared, such as ``encoder.stages.0``."""

    def build(self) -> FeatureNetwork:
        """Loads the network.

        Raises:
            ValueError: if the folder holds no model, or one without a layer of a name.
        """
        return FeatureNetwork(load_stock(self.path), self.layers)


FeatureNetworkConfig = Vgg16Config | StockNetworkConfig


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for wanted in VGG16_WIDTHS:
        if isinstance(wanted, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(width, wanted, 3, padding=1), nn.ReLU()]
        width = wanted
    return nn.Sequential(*layers)


def _places(output: Tensor) -> Tensor:
    return rearrange(output, "b c h w -> b (h w) c") if output.ndim == 4 else output


def _weights_name(layer: str) -> str:
    return f"weights_of_{layer.replace('.', '_')}"
