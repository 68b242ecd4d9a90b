"""Stable Diffusion 1.5 as a decoder: its UNet attends to codes where it attended to a text.

Sources: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
https://arxiv.org/abs/2112.10752, sec. 3.3; Jin et al., "Unified Language-Vision Pretraining in LLM with Dynamic
Discrete Visual Tokenization" (LaVIT), https://arxiv.org/abs/2309.04669, sec. 3.1.
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
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

NUM_PARAMETERS = 859_520_964
"""Of the published UNet."""


def published_architecture() -> dict[str, Any]:
    """Returns what the published UNet has otherwise than its class by default."""
    return {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


@dataclass(frozen=True, kw_only=True)
class StableDiffusionConfig:
    """A UNet with cross attention to codes."""

    part = "unet"  # no field: it is the same for all
    even_noise = False

    size_px: tuple[int, int] = (512, 512)
    """Height and width of the painted pictures."""
    features: FeaturesConfig = RowFeaturesConfig()
    """Codes to features."""
    reader: CodeReaderConfig = CodeReaderConfig()
    """Features to a sequence."""
    architecture: dict[str, Any] = field(default_factory=published_architecture)
    """Options of the UNet; a folder of weights brings its own."""

    def base_class(self) -> "type[UNet2DConditionModel]":
        """Returns the class of the base."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel

    def build_head(self, dim: int, layout: CodeLayout) -> SequenceHead:
        """Builds the head with fresh weights."""
        return SequenceHead(self.reader, dim, layout.num_positions, width=self.architecture["cross_attention_dim"])

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the noise."""
        return base(noisy, timesteps, encoder_hidden_states=condition["encoder_hidden_states"], return_dict=False)[0]
