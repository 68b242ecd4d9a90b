"""The diffusion decoder: paints the latents of a picture from its codes, or from the first of them.

Source: Bachmann et al., "FlexTok", https://arxiv.org/abs/2502.13967, sec. 3 (a flow-matching decoder of discrete codes
in the latents of an auto-encoder, which decodes any prefix).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.model.code_condition import (
    CodeEmbedding,
    Codes,
    Condition,
    ConditionConfig,
    GridConditionConfig,
    patches_per_side,
)
from rebus.model.decoder_guidance import DecoderGuidance, guide
from rebus.model.diffusion_transformer import ModulatedBlock, Modulation, SpanEmbedding, TimeEmbedding, modulate
from rebus.model.fitting_weights import load_fitting
from rebus.model.flow import Solver, integrate, leap
from rebus.model.grid_places import bounding_grid, check_shapes, grid_of, listed, of_one_shape, resized
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.text_condition import TextConditionConfig
from rebus.tokenizers.text_tokenizer import MODEL_FILE, SentencePieceTokenizer
from rebus.tokenizers.tokens import CodeLayout, Grid, Tokens
from rebus.tokenizers.transformer import sincos_positions


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A diffusion transformer over patches of latents."""

    latent_channels: int = 4
    """Channels of the latents."""
    latent_size: tuple[int, int] = (32, 32)
    """Rows and columns of the latents."""
    latent_sizes: tuple[Grid, ...] = ()
    """Those of which each picture has one, the usual one first; the size above is then not meant."""
    time_shift: float = 1.0
    """How far the times of a picture of the usual size are moved towards noise, in training and painting; those of a
    larger one are moved further, by the root of how many times as many latents it has."""
    patch: int = 4
    """Side of the square of latents that is one token."""
    dim: int = 256
    """Width."""
    depth: int = 8
    """Blocks."""
    num_heads: int = 4
    """Attention heads."""
    condition: ConditionConfig = GridConditionConfig()
    """How the codes come in."""
    text: TextConditionConfig | None = None
    """A text, such as the prompt, that patches attend to beside the codes; by default none."""
    flow_map: bool = False
    """Whether it is told how far a step goes, and gives the mean velocity on the way: so few steps lead where many do
    (``train/distill_decoder.py``)."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if min(size) < 1 or any(side % self.patch for side in size):
                raise ValueError(f"latent_size must be a multiple of patch = {self.patch}, got {size}")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"latent_sizes must be distinct, got {self.latent_sizes}")
        if not self.time_shift > 0:
            raise ValueError(f"time_shift must be more than 0, got {self.time_shift}")
        if self.text is not None and self.text.in_encoder:
            raise ValueError("text.in_encoder must be False for a decoder, whose text no encoder reads, got True")
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4 and of num_heads = {self.num_heads}, got {self.dim}")

    @property
    def sizes(self) -> tuple[Grid, ...]:
        """Rows and columns of latents that a picture may have, the usual size first."""
        return self.latent_sizes or (self.latent_size,)

    def build(self, layout: CodeLayout, tokenizer_hash: str) -> "DiffusionDecoder":
        """Builds a decoder with fresh weights for the codes of one image tokenizer.

        Raises:
            ValueError: if the condition does not suit the layout, or a size or grid has no counterpart of its shape.
        """
        if layout.kind == "grid":
            check_shapes(layout.sizes, self.sizes)
        return DiffusionDecoder(self, layout, tokenizer_hash)


class DiffusionDecoder(nn.Module):
    """Predicts the velocity of noisy latents, given the time and a picture's codes."""

    def __init__(self, config: DecoderConfig, layout: CodeLayout, tokenizer_hash: str) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.tokenizer_hash = tokenizer_hash
        dim, patch_values = config.dim, config.latent_channels * config.patch**2
        patch_grids = tuple((rows // config.patch, columns // config.patch) for rows, columns in config.sizes)
        self.whole_grid = bounding_grid(patch_grids)
        self.embed_patches = nn.Linear(patch_values, dim)
        self.patch_positions = nn.Parameter(sincos_positions(*self.whole_grid, dim))
        self.patches_per_side = patches_per_side(config.condition, layout, patch_grids)
        self.embed_codes = CodeEmbedding(layout, self.patches_per_side**2 * dim)
        self.condition: Condition = config.condition.build(layout, patch_grids, dim)
        self.embed_time = TimeEmbedding(dim)
        has_context = self.condition.has_context
        self.blocks = nn.ModuleList(
            ModulatedBlock(dim, config.num_heads, has_context=has_context) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.to_velocity = nn.Linear(dim, patch_values)
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)
        self.text = config.text and config.text.build(dim, dim)
        self.embed_span = SpanEmbedding(dim) if config.flow_map else None

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        time: Float[Tensor, " batch"],
        ids: Int[Tensor, "batch positions streams"],
        span: Float[Tensor, " batch"] | None = None,
        *,
        text: Int[Tensor, "batch pieces"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the velocity.

        Args:
            noisy: latents between data and noise, of one of the sizes of the config.
            time: float32 in [0, 1]; 1 is noise.
            ids: codes of all positions of such pictures; -1 is a missing one, and all missing is no condition at all.
            span: time over which a flow map gives the mean velocity, from ``time`` down; none by default.
            text: pieces as ``text_ids`` makes them, if the decoder reads a text; a missing one by default.

        Raises:
            ValueError: if the times are not float32.
        """
        return self.velocity(noisy, time, self.embed_codes(ids), (ids >= 0).any(dim=-1), span, text=text)

    def velocity(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        time: Float[Tensor, " batch"],
        codes: Float[Tensor, "batch positions code_dim"],
        held: Bool[Tensor, "batch positions"],
        span: Float[Tensor, " batch"] | None = None,
        *,
        text: Int[Tensor, "batch pieces"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the same from the features of codes, of which some are missing."""
        patch = self.config.patch
        patch_grid = noisy.shape[-2] // patch, noisy.shape[-1] // patch
        values = rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
        patches = self.embed_patches(values) + resized(self.patch_positions, self.whole_grid, patch_grid)
        seen = self.condition(patches, Codes(codes, held, grid_of(self.layout, codes.shape[1], patch_grid)), patch_grid)
        features, time_features = self._behind_text(seen.tokens, text), self.embed_time(time)
        if seen.vector is not None:
            time_features = time_features + seen.vector
        if self.embed_span is not None:
            time_features = time_features + self.embed_span(torch.zeros_like(time) if span is None else span)
        for block in self.blocks:
            features = block(features, time_features, seen.context)
        shift, scale = self.modulation(time_features)
        velocity = self.to_velocity(modulate(self.norm(features[:, -values.shape[1] :]), shift, scale))
        return rearrange(velocity, "b (h w) (c p q) -> b c (h p) (w q)", h=patch_grid[0], p=patch, q=patch)

    def text_ids(self, texts: Sequence[str] | None, number: int) -> Int[Tensor, "batch pieces"] | None:
        """Returns the pieces of texts, or of missing ones; None if the decoder reads no text.

        Raises:
            ValueError: if it is given texts but reads none, or not as many as pictures.
        """
        if texts is not None and (self.text is None or len(texts) != number):
            wanted = "left out: the decoder reads none" if self.text is None else f"one for each of {number} pictures"
            raise ValueError(f"text must be {wanted}, got {len(texts)}")
        return self.text and self.text.ids(texts or [""] * number)

    def _behind_text(
        self, tokens: Float[Tensor, "batch tokens dim"], text: Int[Tensor, "batch pieces"] | None
    ) -> Float[Tensor, "batch more dim"]:
        if self.text is None:
            return tokens
        missing = torch.full((len(tokens), self.text.config.length), self.text.pad, device=tokens.device)
        read = self.text.to_decoder(self.text(missing if text is None else text))
        return torch.cat([read, tokens], dim=1)

    def sizes_of(self, tokens: Tokens) -> tuple[Grid, ...]:
        """Returns the sizes of latents at which these pictures may be painted as one batch, the usual one first.

        Raises:
            ValueError: if the codes are of another layout, or the pictures of several sizes.
        """
        if tokens.layout != self.layout:
            raise ValueError(f"tokens must have the decoder's layout {self.layout}, got {tokens.layout}")
        if self.layout.kind == "sequence":
            return self.config.sizes
        grids = sorted(set(tokens.grids or self.layout.sizes))
        if len(grids) > 1:
            raise ValueError(f"pictures painted as one batch must have one size, got codes on {grids}")
        return tuple(size for size in self.config.sizes if of_one_shape(grids[0], size))

    def whole_ids(self, tokens: Tokens) -> Int[Tensor, "batch positions streams"]:
        """Returns the codes of pictures of one size as a whole or longest one has them, -1 where these have none."""
        on_grid = tokens.grids and self.layout.kind == "grid"
        whole = self.layout.num_positions_of(tokens.grids[0] if on_grid else None)
        return F.pad(tokens.ids, (0, 0, 0, whole - tokens.ids.shape[1]), value=-1)

    def time_shift(self, size: Grid) -> float:
        """Returns how far the times of pictures with so many rows and columns of latents are moved towards noise."""
        return self.config.time_shift * math.sqrt(math.prod(size) / math.prod(self.config.sizes[0]))

    @torch.no_grad()
    def render_latents(
        self,
        tokens: Tokens,
        noise: Float[Tensor, "batch channels height width"],
        *,
        text: Sequence[str] | None = None,
        steps: int = 4,
        guidance: DecoderGuidance = 1.0,
        solver: Solver = "euler",
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the latents that noise becomes under codes, or under a prefix of them.

        Args:
            tokens: codes of the image tokenizer that the decoder was trained with.
            noise: unit Gaussian, of one of the sizes that ``sizes_of`` returns.
            text: of each picture, for a decoder that reads one; without it, it does its best.
            steps: evaluations of the decoder; by Heun's way almost twice as many.
            guidance: how far to go from the velocity without codes, but with the text, to that with both; 1 is plain.
            solver: how a step is taken.

        Raises:
            ValueError: if the codes are of another layout, the noise of another size, the texts for another number of
                pictures or for a decoder that reads none, ``steps`` is less than 1, or guidance is out of range.
        """
        size, allowed = (noise.shape[-2], noise.shape[-1]), self.sizes_of(tokens)
        if size not in allowed:
            raise ValueError(f"size of the noise must be one of {listed(allowed)}, got {size[0]} x {size[1]}")
        ids = self.whole_ids(tokens)
        pieces, guided = self.text_ids(text, len(ids)), guide(guidance)
        both = torch.cat([ids, torch.full_like(ids, -1)])
        pieces_of_both = None if pieces is None else torch.cat([pieces, pieces])

        def velocity(noisy: Tensor, time: Tensor, span: Tensor | None = None) -> Tensor:
            if guided is None:
                return self(noisy, time, ids, span, text=pieces)
            noisy, time = torch.cat([noisy, noisy]), torch.cat([time, time])
            span = None if span is None else torch.cat([span, span])
            return guided(*self(noisy, time, both, span, text=pieces_of_both).chunk(2))

        shift = self.time_shift(size)
        if self.config.flow_map:
            if solver != "euler":
                raise ValueError(f"solver must be euler for a flow map, whose steps are exact, got {solver}")
            return leap(velocity, noise, steps, shift=shift)
        return integrate(velocity, noise, steps, shift=shift, solver=solver)

    def save(self, folder: Path) -> None:
        """Writes ``config.json``, ``model.safetensors`` (in bfloat16) and the vocabulary of texts into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "decoder": config_to_json(self.config),
            "layout": self.layout.to_dict(),
            "tokenizer_hash": self.tokenizer_hash,
        }
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        weights = {name: value.cpu().bfloat16().contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")
        if self.text is not None and self.text.pieces is not None:
            (folder / MODEL_FILE).write_bytes(self.text.pieces.model_proto)

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
        load_fitting(decoder, folder / "model.safetensors")
        if decoder.text is not None:
            decoder.text.pieces = SentencePieceTokenizer.load(folder)
        return decoder.to(device).eval()
