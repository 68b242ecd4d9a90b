"""Codes to pixels: a diffusion decoder, and the auto-encoder in whose latents it paints."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.model.decoder import DiffusionDecoder
from rebus.model.decoder_guidance import DecoderGuidance
from rebus.model.flow import Solver
from rebus.model.grid_places import listed
from rebus.model.vae import decode_latents
from rebus.tokenizers.autoencoder import downsampling
from rebus.tokenizers.tokens import Grid, Tokens

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


class DecoderPipeline:
    """A decoder with the auto-encoder of its latents: codes to pixels."""

    def __init__(self, decoder: DiffusionDecoder, vae: "AutoencoderKL") -> None:
        if vae.config["latent_channels"] != decoder.config.latent_channels:
            wanted, got = decoder.config.latent_channels, vae.config["latent_channels"]
            raise ValueError(f"latent_channels of the auto-encoder must be {wanted}, got {got}")
        self.decoder = decoder
        self.vae = vae

    @property
    def reads_text(self) -> bool:
        """Whether it paints what a text says, too."""
        return self.decoder.text is not None

    @torch.no_grad()
    def render(
        self,
        tokens: Tokens,
        *,
        text: Sequence[str] | None = None,
        size: Grid | None = None,
        steps: int = 4,
        guidance: DecoderGuidance = 1.0,
        solver: Solver = "euler",
        seed: int | Sequence[int] = 0,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures in [0, 1]; a picture comes out the same alone and in a batch.

        Args:
            tokens: codes, or a prefix of them.
            text: what each shows, for a decoder that reads it; without it, it does its best.
            size: height and width in pixels, one of those the decoder was trained with; the usual one by default.
            steps: evaluations of the decoder; by Heun's way almost twice as many.
            guidance: 1 is plain, more is stricter.
            solver: how a step is taken.
            seed: of the noise, one for all pictures or one for each.

        Raises:
            ValueError: if the codes are of another layout or of several sizes, the size is none of the decoder's, texts
                or seeds are not as many, ``steps`` is less than 1, or guidance is out of range.
        """
        num_pictures = len(tokens.ids)
        seeds = [seed] * num_pictures if isinstance(seed, int) else list(seed)
        if len(seeds) != num_pictures:
            raise ValueError(f"seed must be one or {num_pictures}, got {len(seeds)}")
        device = next(self.decoder.parameters()).device
        shape = (self.decoder.config.latent_channels, *self._latent_size(tokens, size))
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(one)) for one in seeds])
        latents = self.decoder.render_latents(
            tokens.to(device), noise.to(device), text=text, steps=steps, guidance=guidance, solver=solver
        )
        return decode_latents(self.vae, latents)

    def _latent_size(self, tokens: Tokens, size: Grid | None) -> Grid:
        factor = downsampling(self.vae)
        of_px = {(rows * factor, columns * factor): (rows, columns) for rows, columns in self.decoder.sizes_of(tokens)}
        if size is None:
            return next(iter(of_px.values()))
        if size not in of_px:
            raise ValueError(f"size must be one of {listed(tuple(of_px))} px, got {size[0]} x {size[1]}")
        return of_px[size]
