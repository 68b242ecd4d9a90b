"""The diffusion decoder: paints the latents of a picture from its codes, or from the first of them.

Source: Bachmann et al., "FlexTok", https://arxiv.org/abs/2502.13967, sec. 3 (a flow-matching decoder of discrete codes
in the latents of an auto-encoder, which decodes any prefix).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.model.code_condition import CodeEmbedding, GridConditionConfig, SequenceConditionConfig
from rebus.model.diffusion_transformer import ModulatedBlock, Modulation, SpanEmbedding, TimeEmbedding, modulate
from rebus.model.flow import integrate
from rebus.model.vae import decode_latents
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.tokens import CodeLayout, Tokens
from rebus.tokenizers.transformer import sincos_positions

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A diffusion transformer over patches of latents."""

    latent_channels: int = 4
    """Channels of the latents."""
    latent_size: tuple[int, int] = (32, 32)
    """Rows and columns of the latents."""
    patch: int = 4
    """Side of the square of latents that is one token."""
    dim: int = 256
    """Width."""
    depth: int = 8
    """Blocks."""
    num_heads: int = 4
    """Attention heads."""
    condition: GridConditionConfig | SequenceConditionConfig = GridConditionConfig()
    """How the codes come in."""
    flow_map: bool = False
    """Whether it is told how far a step goes, and gives the mean velocity on the way: so few steps lead where many do
    (``train/distill_decoder.py``)."""

    def __post_init__(self) -> None:
        if any(side % self.patch for side in self.latent_size):
            raise ValueError(f"latent_size must be a multiple of patch = {self.patch}, got {self.latent_size}")
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4 and of num_heads = {self.num_heads}, got {self.dim}")

    def build(self, layout: CodeLayout, tokenizer_hash: str) -> "DiffusionDecoder":
        """Builds a decoder with fresh weights for the codes of one image tokenizer.

        Raises:
            ValueError: if the condition does not suit the layout, or that has several grids.
        """
        layout.check_one_size("a diffusion decoder")
        return DiffusionDecoder(self, layout, tokenizer_hash)


class DiffusionDecoder(nn.Module):
    """Predicts the velocity of noisy latents, given the time and a picture's codes."""

    def __init__(self, config: DecoderConfig, layout: CodeLayout, tokenizer_hash: str) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.tokenizer_hash = tokenizer_hash
        dim, patch_values = config.dim, config.latent_channels * config.patch**2
        rows, columns = (side // config.patch for side in config.latent_size)
        self.embed_patches = nn.Linear(patch_values, dim)
        self.patch_positions = nn.Parameter(sincos_positions(rows, columns, dim))
        self.embed_codes = CodeEmbedding(layout, dim)
        self.condition = config.condition.build(layout, (rows, columns), dim)
        self.embed_time = TimeEmbedding(dim)
        self.blocks = nn.ModuleList(ModulatedBlock(dim, config.num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.to_velocity = nn.Linear(dim, patch_values)
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)
        self.embed_span = SpanEmbedding(dim) if config.flow_map else None

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        time: Float[Tensor, " batch"],
        ids: Int[Tensor, "batch positions streams"],
        span: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the velocity.

        Args:
            noisy: latents between data and noise.
            time: float32 in [0, 1]; 1 is noise.
            ids: codes of all positions; -1 is a missing one, and all missing is no condition at all.
            span: time over which a flow map gives the mean velocity, from ``time`` down; none by default.

        Raises:
            ValueError: if the times are not float32.
        """
        patch, (height, _) = self.config.patch, self.config.latent_size
        values = rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        patches = self.embed_patches(values) + self.patch_positions
        features = self.condition(patches, self.embed_codes(ids))
        time_features = self.embed_time(time)
        if self.embed_span is not None:
            time_features = time_features + self.embed_span(torch.zeros_like(time) if span is None else span)
        for block in self.blocks:
            features = block(features, time_features)
        shift, scale = self.modulation(time_features)
        velocity = self.to_velocity(modulate(self.norm(features[:, -values.shape[1] :]), shift, scale))
        return rearrange(velocity, "b (h w) (c p q) -> b c (h p) (w q)", h=height // patch, p=patch, q=patch)

    @torch.no_grad()
    def render_latents(
        self,
        tokens: Tokens,
        noise: Float[Tensor, "batch channels height width"],
        *,
        steps: int = 4,
        guidance: float = 1.0,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the latents that noise becomes under codes, or under a prefix of them.

        Args:
            tokens: codes of the image tokenizer that the decoder was trained with.
            noise: unit Gaussian.
            steps: evaluations of the decoder.
            guidance: how far to go from the velocity without codes to that with codes; 1 is plain, more is stricter.

        Raises:
            ValueError: if the codes are of another layout, or ``steps`` is less than 1.
        """
        if tokens.layout != self.layout:
            raise ValueError(f"tokens must have the decoder's layout {self.layout}, got {tokens.layout}")
        ids = F.pad(tokens.ids, (0, 0, 0, self.layout.num_positions - tokens.ids.shape[1]), value=-1)
        both = torch.cat([ids, torch.full_like(ids, -1)])

        def velocity(noisy: Tensor, time: Tensor) -> Tensor:
            span = torch.full_like(time, 1 / steps)
            if guidance == 1:
                return self(noisy, time, ids, span)
            noisy, time, span = (torch.cat([each, each]) for each in (noisy, time, span))
            with_codes, without = self(noisy, time, both, span).chunk(2)
            return without + guidance * (with_codes - without)

        return integrate(velocity, noise, steps)

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` (in bfloat16) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "decoder": config_to_json(self.config),
            "layout": self.layout.to_dict(),
            "tokenizer_hash": self.tokenizer_hash,
        }
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        weights = {name: value.cpu().bfloat16().contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")

    @staticmethod
    def load(
        folder: Path, device: str | torch.device = "cpu", *, tokenizer_hash: str | None = None
    ) -> "DiffusionDecoder":
        """Reads a saved decoder, in eval mode and float32.

        Args:
            folder: what ``save`` wrote.
            device: where to put it.
            tokenizer_hash: that of the image tokenizer whose codes it shall decode; not looked at by default.

        Raises:
            ValueError: if the folder holds no decoder, its weights do not fit, or it is of another tokenizer.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} must hold a saved decoder (config.json), got no such file")
        values = json.loads((folder / "config.json").read_text())
        if tokenizer_hash is not None and tokenizer_hash != values["tokenizer_hash"]:
            trained_with = values["tokenizer_hash"]
            raise ValueError(f"{folder}: tokenizer_hash must be {trained_with}, as in training, got {tokenizer_hash}")
        config = config_from_json(DecoderConfig, values["decoder"])
        decoder = config.build(CodeLayout.from_dict(values["layout"]), values["tokenizer_hash"])
        try:
            decoder.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"{folder}: the weights must fit config.json, got {error}") from error
        return decoder.to(device).eval()


class DecoderPipeline:
    """A decoder with the auto-encoder of its latents: codes to pixels."""

    def __init__(self, decoder: DiffusionDecoder, vae: "AutoencoderKL") -> None:
        if vae.config["latent_channels"] != decoder.config.latent_channels:
            wanted, got = decoder.config.latent_channels, vae.config["latent_channels"]
            raise ValueError(f"latent_channels of the auto-encoder must be {wanted}, got {got}")
        self.decoder = decoder
        self.vae = vae

    @torch.no_grad()
    def render(
        self, tokens: Tokens, *, steps: int = 4, guidance: float = 1.0, seed: int | Sequence[int] = 0
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures in [0, 1]; a picture comes out the same alone and in a batch.

        Args:
            tokens: codes, or a prefix of them.
            steps: evaluations of the decoder.
            guidance: 1 is plain, more is stricter.
            seed: of the noise, one for all pictures or one for each.

        Raises:
            ValueError: if the codes are of another layout, the seeds are not as many, or ``steps`` is less than 1.
        """
        num_pictures = len(tokens.ids)
        seeds = [seed] * num_pictures if isinstance(seed, int) else list(seed)
        if len(seeds) != num_pictures:
            raise ValueError(f"seed must be one or {num_pictures}, got {len(seeds)}")
        device, config = next(self.decoder.parameters()).device, self.decoder.config
        shape = (config.latent_channels, *config.latent_size)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(one)) for one in seeds])
        latents = self.decoder.render_latents(tokens.to(device), noise.to(device), steps=steps, guidance=guidance)
        return decode_latents(self.vae, latents)
