"""Sana as a decoder: its linear transformer attends to codes where it attended to a text.

Sources: Xie et al., "SANA", https://arxiv.org/abs/2410.10629, sec. 2; Han et al., "Vision as a Dialect" (Tar),
https://arxiv.org/abs/2506.18898 (codes in place of Sana's prompt).
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
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

NUM_PARAMETERS = 591_747_872
"""Of the published transformer of the 0.6B size."""


def published_architecture() -> dict[str, Any]:
    """Returns the options of the published transformer of the 0.6B size."""
    return {
        "num_layers": 28,
        "num_attention_heads": 36,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 16,
        "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152,
        "caption_channels": 2304,
    }


@dataclass(frozen=True, kw_only=True)
class SanaConfig:
    """A linear transformer with cross attention to codes; its latents have a 32nd of a picture's side."""

    part = "transformer"  # no field: it is the same for all
    even_noise = False

    size_px: tuple[int, int] = (1024, 1024)
    """Height and width of the painted pictures."""
    features: FeaturesConfig = RowFeaturesConfig()
    """Codes to features."""
    reader: CodeReaderConfig = CodeReaderConfig()
    """Features to a sequence."""
    architecture: dict[str, Any] = field(default_factory=published_architecture)
    """Options of the transformer; a folder of weights brings its own."""

    def base_class(self) -> "type[SanaTransformer2DModel]":
        """Returns the class of the base."""
        from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

        return SanaTransformer2DModel

    def build_head(self, dim: int, layout: CodeLayout) -> SequenceHead:
        """Builds the head with fresh weights."""
        return SequenceHead(self.reader, dim, layout.num_positions, width=self.architecture["caption_channels"])

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the velocity towards noise."""
        times = timesteps * self.architecture.get("timestep_scale", 1.0)
        return base(noisy, condition["encoder_hidden_states"], times, return_dict=False)[0]
