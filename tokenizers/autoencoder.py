"""The halves of a continuous auto-encoder of diffusers, for tokenizers that read or paint its latents."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.saved_config import check_plain

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A diffusers AutoencoderKL, from a folder or of given sizes with fresh weights."""

    pretrained: str = ""
    """Folder of a saved AutoencoderKL whose sizes and weights are taken. A saved tokenizer holds both and does not
    need the folder any more."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Its sizes and the scale of its latents, as keys of the class; those of ``pretrained`` if there is one."""

    def __post_init__(self) -> None:
        check_plain("architecture", self.architecture)
        if self.pretrained and self.architecture:
            raise ValueError(f"architecture must be empty where pretrained says it, got {self.architecture}")

    def build(self) -> "tuple[AutoencoderKL, AutoencoderConfig]":
        """Returns the auto-encoder, and the config that builds it without the folder.

        Raises:
            ValueError: if the folder holds none, its weights do not fit, or its pictures are not red, green and blue.
        """
        if not self.pretrained:
            return _fresh(self.architecture), self
        vae = read_autoencoder(Path(self.pretrained))
        kept = {name: value for name, value in vae.config.items() if name[0] != "_"}
        return vae, AutoencoderConfig(architecture=kept)


class LatentReader(nn.Module):
    """Pictures to their mean latents, at about unit spread; its weights never change."""

    def __init__(self, vae: "AutoencoderKL") -> None:
        super().__init__()
        self.fold_px = fold_px(vae)
        self.scale, self.shift = scale_and_shift(vae)
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows columns"]:
        """Returns the latents of pictures in [0, 1]."""
        moments = self.encoder(F.pixel_unshuffle(2 * images - 1, self.fold_px))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return (moments.chunk(2, dim=1)[0] - self.shift) * self.scale


class LatentPainter(nn.Module):
    """Latents to pictures of about [0, 1]."""

    def __init__(self, vae: "AutoencoderKL") -> None:
        super().__init__()
        self.fold_px = fold_px(vae)
        self.scale, self.shift = scale_and_shift(vae)
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latents: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch 3 height width"]:
        """Returns the pictures of latents."""
        latents = latents / self.scale + self.shift
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return F.pixel_shuffle(self.decoder(latents), self.fold_px) * 0.5 + 0.5


def fold_px(vae: "AutoencoderKL") -> int:
    """Returns the side of the squares of pixels that are folded into channels before the first convolution."""
    return round((vae.config["in_channels"] / 3) ** 0.5)


def downsampling(vae: "AutoencoderKL") -> int:
    """Returns how many pixels of a side one latent stands for."""
    return fold_px(vae) * 2 ** (len(vae.config["block_out_channels"]) - 1)


def scale_and_shift(vae: "AutoencoderKL") -> tuple[float, float]:
    """Returns what latents are multiplied with after the shift is taken off."""
    return vae.config["scaling_factor"], vae.config["shift_factor"] or 0.0


def read_autoencoder(folder: Path) -> "AutoencoderKL":
    """Returns the auto-encoder that ``save_pretrained`` wrote, in eval mode and float32.

    Raises:
        ValueError: if the folder holds none, its weights do not fit, or its pictures are not red, green and blue.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} must hold a saved auto-encoder (config.json, safetensors), got no such files")
    options: dict[str, Any] = {"use_safetensors": True, "low_cpu_mem_usage": False, "local_files_only": True}
    try:
        kind = json.loads((folder / "config.json").read_text())["_class_name"]
        if kind != AutoencoderKL.__name__:  # diffusers would only warn
            raise ValueError(f"_class_name of the auto-encoder must be AutoencoderKL, got {kind}")
        read: Any = AutoencoderKL.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} must hold an AutoencoderKL with weights that fit, got {error}") from error
    vae, info = read
    if wrong := {name: info[name] for name in ("missing_keys", "unexpected_keys") if info[name]}:
        raise ValueError(f"{folder}: the weights must fit config.json, got {wrong}")
    _check_colors(vae)
    return vae.eval()


def _check_colors(vae: "AutoencoderKL") -> None:
    if 3 * fold_px(vae) ** 2 != vae.config["in_channels"]:
        raise ValueError(f"in_channels must be 3 times a square number, got {vae.config['in_channels']}")


def _fresh(architecture: dict[str, Any]) -> "AutoencoderKL":
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    try:
        vae = AutoencoderKL(**architecture).eval()
    except TypeError as error:
        raise ValueError(f"architecture must have the keys of AutoencoderKL, got {error}") from error
    _check_colors(vae)
    return vae
