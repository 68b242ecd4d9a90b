"""Pictures to the latents of a borrowed auto-encoder and back, scaled as its diffusion model knows them."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def to_latents(vae: Any, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows columns"]:
    """Returns the mean latents of pictures in [0, 1], in float32.

    Args:
        vae: an AutoencoderKL, or an AutoencoderDC, whose latents are not drawn.
        images: pictures.
    """
    encoded = vae.encode((2 * images - 1).to(vae.dtype))
    values = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    return (values.float() - _shift(vae)) * vae.config["scaling_factor"]


@torch.no_grad()
def to_pictures(
    vae: Any, latents: Float[Tensor, "batch channels rows columns"]
) -> Float[Tensor, "batch 3 height width"]:
    """Returns pictures in [0, 1], in float32."""
    values = latents / vae.config["scaling_factor"] + _shift(vae)
    return ((vae.decode(values.to(vae.dtype), return_dict=False)[0].float() + 1) / 2).clamp(0, 1)


def latent_shape(vae: Any, size_px: tuple[int, int]) -> tuple[int, int, int]:
    """Returns channels, rows and columns of the latents of a picture.

    Raises:
        ValueError: if the auto-encoder does not divide the picture's sides.
    """
    levels = vae.config.get("block_out_channels") or vae.config["encoder_block_out_channels"]
    factor = 2 ** (len(levels) - 1)
    if any(side % factor for side in size_px):
        raise ValueError(f"size_px must be multiples of {factor}, the auto-encoder's factor, got {size_px}")
    return vae.config["latent_channels"], size_px[0] // factor, size_px[1] // factor


def resized(images: Float[Tensor, "batch 3 _ _"], size_px: tuple[int, int]) -> Float[Tensor, "batch 3 height width"]:
    """Returns pictures in [0, 1] of another height and width."""
    if images.shape[-2:] == size_px:
        return images
    return F.interpolate(images, size_px, mode="bicubic", antialias=True).clamp(0, 1)


def _shift(vae: Any) -> float:
    return vae.config.get("shift_factor") or 0.0
