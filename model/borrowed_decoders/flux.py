"""FLUX as a decoder: what codes mean is added to the picture once, between the two kinds of blocks.

Source: Geng et al., "X-Omni: Reinforcement Learning Makes Discrete Autoregressive Image Generative Models Great Again",
https://arxiv.org/abs/2507.22058, and its published decoder ``FluxTransformer2DModelWithSigLIP``: a projection without
bias that is zero at first, so that a fresh adapter paints as FLUX does, and true guidance in two passes, with the
embedded scale of the distilled guidance at 1.
Differs: no text, learned rows stand for it; a grid of codes coarser than that of the patches is spread over them, as in
GLM-Image; and what is added comes in as ControlNets do, through the transformer's own argument.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.model.borrowed_decoders.code_features import FeaturesConfig, LookupFeaturesConfig
from rebus.model.borrowed_decoders.contract import Condition
from rebus.model.borrowed_decoders.noising import NUM_TIMESTEPS
from rebus.tokenizers.tokens import CodeLayout, Grid

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

NUM_PARAMETERS = 11_901_408_320
"""Of the published transformer."""
PATCH_PX = 16
"""Side of the square of pixels that is one token: 8 of the auto-encoder, times 2."""


def published_architecture() -> dict[str, Any]:
    """Returns the options of FLUX.1-dev."""
    return {
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
    }


@dataclass(frozen=True, kw_only=True)
class FluxConfig:
    """A transformer with blocks of two streams, then blocks of one; codes come in between."""

    part = "transformer"  # no field: it is the same for all
    even_noise = True

    size_px: tuple[int, int] = (1024, 1024)
    """Height and width of the painted pictures."""
    features: FeaturesConfig = LookupFeaturesConfig()
    """Codes to features."""
    num_text_rows: int = 16
    """Learned rows in place of a text."""
    architecture: dict[str, Any] = field(default_factory=published_architecture)
    """Options of the transformer; a folder of weights brings its own."""

    def base_class(self) -> "type[FluxTransformer2DModel]":
        """Returns the class of the base."""
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        return FluxTransformer2DModel

    def build_head(self, dim: int, layout: CodeLayout) -> "FluxHead":
        """Builds the head, whose projection is zero.

        Raises:
            ValueError: if the codes lie on no grid, or on one whose cells are no whole patches.
        """
        grid = layout.grid
        if grid is None or any(side % (PATCH_PX * cells) for side, cells in zip(self.size_px, grid, strict=True)):
            raise ValueError(
                f"size_px must be {PATCH_PX} px times a multiple of the codes' grid, {grid}, got {self.size_px}"
            )
        return FluxHead(self, dim, grid, (self.size_px[0] // PATCH_PX, self.size_px[1] // PATCH_PX))

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the velocity towards noise."""
        height, text = noisy.shape[-2], condition["encoder_hidden_states"]
        nothing = noisy.new_zeros(())
        output = base(
            hidden_states=rearrange(noisy, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
            encoder_hidden_states=text,
            pooled_projections=condition["pooled_projections"],
            timestep=timesteps / NUM_TIMESTEPS,
            img_ids=_places((height // 2, noisy.shape[-1] // 2)).to(noisy.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device),
            guidance=torch.ones_like(timesteps) if base.config["guidance_embeds"] else None,
            # One for each block of two streams: what is added after the last of them.
            controlnet_block_samples=[nothing] * (len(base.transformer_blocks) - 1) + [condition["meaning"]],
            return_dict=False,
        )[0]
        return rearrange(output, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, p=2, q=2)


class FluxHead(nn.Module):
    """The projection of features onto patches, and the rows in place of a text."""

    def __init__(self, config: FluxConfig, feature_dim: int, grid: Grid, patches: Grid) -> None:
        super().__init__()
        options = config.architecture
        self.grid = grid
        self.spread = (patches[0] // grid[0], patches[1] // grid[1])
        dim = options["num_attention_heads"] * options["attention_head_dim"]
        self.project = nn.Linear(feature_dim, dim, bias=False)
        nn.init.zeros_(self.project.weight)
        self.text = nn.Parameter(torch.zeros(config.num_text_rows, options["joint_attention_dim"]))
        self.pooled = nn.Parameter(torch.zeros(options["pooled_projection_dim"]))

    def forward(
        self, features: Float[Tensor, "batch positions dim"], held: Bool[Tensor, "batch positions"]
    ) -> Condition:
        """Returns what is added to each patch, nothing where the code is missing, and the rows."""
        cells = self.project(features) * held[..., None]
        meaning = repeat(cells, "b (h w) d -> b (h p w q) d", h=self.grid[0], p=self.spread[0], q=self.spread[1])
        return {
            "meaning": meaning,
            "encoder_hidden_states": self.text.expand(len(features), -1, -1),
            "pooled_projections": self.pooled.expand(len(features), -1),
        }


def _places(grid: Grid) -> Float[Tensor, "patches three"]:
    """Returns the row and column of each patch, after a zero."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()
