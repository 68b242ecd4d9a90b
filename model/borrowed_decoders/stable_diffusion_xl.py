"""Stable Diffusion XL as a decoder: its UNet attends to codes, and adds their pooled vector to the time.

Sources: Podell et al., "SDXL", https://arxiv.org/abs/2307.01952, sec. 2.1 and 2.2 (sizes as conditions); Huang et al.,
"ILLUME+", https://arxiv.org/abs/2504.01934 (SDXL as the decoder of codes).
Differs: codes stand for the text, as in LaVIT, and the UNet is frozen but for low-rank additions.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.model.borrowed_decoders.code_features import FeaturesConfig, RowFeaturesConfig
from rebus.model.borrowed_decoders.contract import Condition
from rebus.model.borrowed_decoders.sequence_head import CodeReaderConfig, SequenceHead
from rebus.tokenizers.tokens import CodeLayout

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

NUM_PARAMETERS = 2_567_463_684
"""Of the published UNet."""
NUM_SIZES = 6
"""Numbers beside the pooled vector: the picture's size, where it was cut out, and the size to paint."""


def published_architecture() -> dict[str, Any]:
    """Returns what the published UNet has otherwise than its class by default."""
    return {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }


@dataclass(frozen=True, kw_only=True)
class StableDiffusionXLConfig:
    """A UNet with cross attention to codes and a pooled vector."""

    part = "unet"  # no field: it is the same for all
    even_noise = False

    size_px: tuple[int, int] = (1024, 1024)
    """Height and width of the painted pictures."""
    features: FeaturesConfig = RowFeaturesConfig()
    """Codes to features."""
    reader: CodeReaderConfig = CodeReaderConfig()
    """Features to a sequence and a pooled vector."""
    architecture: dict[str, Any] = field(default_factory=published_architecture)
    """Options of the UNet; a folder of weights brings its own."""

    def base_class(self) -> "type[UNet2DConditionModel]":
        """Returns the class of the base."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel

    def build_head(self, dim: int, layout: CodeLayout) -> SequenceHead:
        """Builds the head with fresh weights.

        Raises:
            ValueError: if the UNet reads no pooled vector.
        """
        options = self.architecture
        if options.get("addition_embed_type") != "text_time":
            got = options.get("addition_embed_type")
            raise ValueError(f"addition_embed_type of the UNet must be text_time, got {got}")
        pooled = options["projection_class_embeddings_input_dim"] - NUM_SIZES * options["addition_time_embed_dim"]
        width = options["cross_attention_dim"]
        return SequenceHead(self.reader, dim, layout.num_positions, width=width, pooled_width=pooled)

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the noise in a whole picture, nothing of which was cut off."""
        sizes = torch.tensor([*self.size_px, 0, 0, *self.size_px], dtype=torch.float32, device=noisy.device)
        added = {"text_embeds": condition["pooled_projections"], "time_ids": sizes.expand(len(noisy), NUM_SIZES)}
        sequence = condition["encoder_hidden_states"]
        return base(noisy, timesteps, sequence, added_cond_kwargs=added, return_dict=False)[0]
