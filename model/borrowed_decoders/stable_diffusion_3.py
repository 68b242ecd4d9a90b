"""Stable Diffusion 3 as a decoder: codes are the text tokens that its transformer mixes with those of the picture.

Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
https://arxiv.org/abs/2403.03206, sec. 4.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from rebus.model.borrowed_decoders.code_features import FeaturesConfig, RowFeaturesConfig
from rebus.model.borrowed_decoders.contract import Condition
from rebus.model.borrowed_decoders.sequence_head import CodeReaderConfig, SequenceHead
from rebus.tokenizers.tokens import CodeLayout

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

NUM_PARAMETERS = 2_028_328_000
"""Of the published transformer of the medium size."""


def published_architecture() -> dict[str, Any]:
    """Returns the options of the published transformer of the medium size."""
    return {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    }


@dataclass(frozen=True, kw_only=True)
class StableDiffusion3Config:
    """A transformer over codes and patches."""

    part = "transformer"  # no field: it is the same for all
    even_noise = False

    size_px: tuple[int, int] = (1024, 1024)
    """Height and width of the painted pictures."""
    features: FeaturesConfig = RowFeaturesConfig()
    """Codes to features."""
    reader: CodeReaderConfig = CodeReaderConfig()
    """Features to a sequence and a pooled vector."""
    architecture: dict[str, Any] = field(default_factory=published_architecture)
    """Options of the transformer; a folder of weights brings its own."""

    def base_class(self) -> "type[SD3Transformer2DModel]":
        """Returns the class of the base."""
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        return SD3Transformer2DModel

    def build_head(self, dim: int, layout: CodeLayout) -> SequenceHead:
        """Builds the head with fresh weights."""
        width, pooled = (self.architecture[name] for name in ("joint_attention_dim", "pooled_projection_dim"))
        return SequenceHead(self.reader, dim, layout.num_positions, width=width, pooled_width=pooled)

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the velocity towards noise."""
        return base(hidden_states=noisy, timestep=timesteps, **condition, return_dict=False)[0]
