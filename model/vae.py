"""The continuous auto-encoder in whose latents the diffusion decoder paints: a small diffusers AutoencoderKL.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
https://arxiv.org/abs/2112.10752, sec. 3.1.
Differs: no attention, so that it can be trained on crops, and pictures may have any size that its factor divides.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.autoencoder import downsampling, fold_px, read_autoencoder, scale_and_shift

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

IMAGE_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """A small auto-encoder; each level after the first halves the sides."""

    fold_px: int = 2
    """Side of the squares of pixels that are folded into channels before the first convolution, and unfolded after
    the last: 2 makes it twice as fast as one more level of convolutions would be."""
    block_out_channels: tuple[int, ...] = (32, 64)
    """Channels of the levels, from fine to coarse."""
    layers_per_block: int = 1
    """Residual blocks of an encoder level; a decoder level has one more."""
    latent_channels: int = 4
    """Channels of the latents."""
    norm_num_groups: int = 8
    """Groups of the group norms; must divide all channels."""

    def __post_init__(self) -> None:
        if self.fold_px < 1:
            raise ValueError(f"fold_px must be at least 1, got {self.fold_px}")
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(
                f"block_out_channels must be multiples of norm_num_groups = {self.norm_num_groups}, "
                f"got {self.block_out_channels}"
            )

    def build(self) -> "AutoencoderKL":
        """Builds the auto-encoder with fresh weights; its latents are neither scaled nor shifted yet."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        num_levels = len(self.block_out_channels)
        options: dict[str, Any] = {  # the annotations of diffusers allow one level only
            "down_block_types": ("DownEncoderBlock2D",) * num_levels,
            "up_block_types": ("UpDecoderBlock2D",) * num_levels,
            "block_out_channels": self.block_out_channels,
        }
        return AutoencoderKL(
            in_channels=IMAGE_CHANNELS * self.fold_px**2,
            out_channels=IMAGE_CHANNELS * self.fold_px**2,
            layers_per_block=self.layers_per_block,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_num_groups,
            scaling_factor=1.0,
            shift_factor=0.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            **options,
        )


def posterior(
    vae: "AutoencoderKL", images: Float[Tensor, "batch 3 height width"]
) -> tuple[Float[Tensor, "batch channels rows columns"], Float[Tensor, "batch channels rows columns"]]:
    """Returns mean and log variance of the latents of pictures in [0, 1], neither scaled nor shifted.

    Raises:
        ValueError: if the sides of the pictures are no multiples of the downsampling.
    """
    factor = downsampling(vae)
    if images.shape[-2] % factor or images.shape[-1] % factor:
        raise ValueError(f"sides of pictures must be multiples of {factor} px, got {tuple(images.shape[-2:])}")
    moments = vae.encoder(F.pixel_unshuffle(2 * images - 1, fold_px(vae)))
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def rebuild(
    vae: "AutoencoderKL", latents: Float[Tensor, "batch channels rows columns"]
) -> Float[Tensor, "batch 3 height width"]:
    """Returns the pictures of latents that are neither scaled nor shifted, about [0, 1] but not clamped to it."""
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    return (F.pixel_shuffle(vae.decoder(latents), fold_px(vae)) + 1) / 2


@torch.no_grad()
def encode_latents(
    vae: "AutoencoderKL", images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch channels rows columns"]:
    """Returns the mean latents of pictures in [0, 1], at about zero mean and unit spread over the training pictures.

    Raises:
        ValueError: if the sides of the pictures are no multiples of the downsampling.
    """
    scale, shift = scale_and_shift(vae)
    return (posterior(vae, images)[0] - shift) * scale


@torch.no_grad()
def decode_latents(
    vae: "AutoencoderKL", latents: Float[Tensor, "batch channels rows columns"]
) -> Float[Tensor, "batch 3 height width"]:
    """Returns pictures in [0, 1] from latents as ``encode_latents`` gives them."""
    scale, shift = scale_and_shift(vae)
    return rebuild(vae, latents / scale + shift).clamp(0, 1)


def fit_scale(vae: "AutoencoderKL", images: Float[Tensor, "batch 3 height width"]) -> None:
    """Sets the scale and shift of the latents so that those of these pictures have zero mean and unit spread."""
    with torch.no_grad():
        latents = posterior(vae, images)[0].double()
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())


def load_vae(folder: Path, device: str | torch.device = "cpu") -> "AutoencoderKL":
    """Reads any AutoencoderKL that ``save_pretrained`` wrote, ours or that of Stable Diffusion or FLUX, and freezes it.

    Raises:
        ValueError: if the folder holds none, its weights do not fit, or its pictures are not red, green and blue.
    """
    vae = read_autoencoder(folder)
    nn.Module.to(vae, device)  # diffusers' own .to has lost its types
    return vae.requires_grad_(False)
