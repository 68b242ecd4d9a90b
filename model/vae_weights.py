"""The decoder of a saved auto-encoder straight from its folder: importing its class would take seconds.

That is done for the auto-encoders that ``VaeConfig`` builds, and equals the class; others are read by the class.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rebus.model.vae import load_vae

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

PLAIN = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "mid_block_add_attention": False,
    "use_post_quant_conv": False,
}
"""What a config must say for the weights to mean what they are taken for here."""
_EPS = 1e-6


def read_vae(folder: Path, device: str | torch.device) -> "AutoencoderKL":
    """Returns the config and the decoder of a saved auto-encoder, in float32, as attributes named as in the class.

    Raises:
        ValueError: if the folder holds none, or its weights do not fit.
    """
    config = json.loads((folder / "config.json").read_text())
    if any(config.get(name) != plain for name, plain in PLAIN.items()):
        return load_vae(folder, device)
    tensors = safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors", device=str(device))
    weights = {name.removeprefix("decoder."): tensor.float() for name, tensor in tensors.items()}
    decoder = _Decoder(
        weights, len(config["up_block_types"]), config["layers_per_block"] + 1, config["norm_num_groups"]
    )
    return cast("AutoencoderKL", SimpleNamespace(config=config, decoder=decoder, post_quant_conv=None))


class _Decoder:
    """Convolutions from latents to pixels."""

    def __init__(self, weights: dict[str, Tensor], num_levels: int, num_blocks: int, num_groups: int) -> None:
        self.weights = weights
        self.num_levels = num_levels
        self.num_blocks = num_blocks
        self.num_groups = num_groups

    def __call__(
        self, latents: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Returns pixels, as many channels as the auto-encoder reads."""
        features = self._convolve("conv_in", latents)
        for block in range(2):
            features = self._residual(f"mid_block.resnets.{block}", features)
        for level in range(self.num_levels):
            for block in range(self.num_blocks):
                features = self._residual(f"up_blocks.{level}.resnets.{block}", features)
            if level < self.num_levels - 1:
                features = F.interpolate(features, scale_factor=2.0, mode="nearest")
                features = self._convolve(f"up_blocks.{level}.upsamplers.0.conv", features)
        return self._convolve("conv_out", self._norm("conv_norm_out", features))

    def _residual(self, name: str, features: Tensor) -> Tensor:
        change = self._convolve(f"{name}.conv1", self._norm(f"{name}.norm1", features))
        change = self._convolve(f"{name}.conv2", self._norm(f"{name}.norm2", change))
        if f"{name}.conv_shortcut.weight" in self.weights:
            features = self._convolve(f"{name}.conv_shortcut", features)
        return features + change

    def _norm(self, name: str, features: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.silu(F.group_norm(features, self.num_groups, weight, bias, _EPS))

    def _convolve(self, name: str, features: Tensor) -> Tensor:
        return F.conv2d(features, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding="same")
