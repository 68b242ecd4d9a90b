"""Stable Diffusion 2.1 unCLIP as a decoder: codes become one embedding of a picture, from which it paints.

The embedding is CLIP's: the adapter learns to tell it from codes, and the UNet has no part in the training.

Sources: Ge et al., "Making LLaMA SEE and Draw with SEED Tokenizer", https://arxiv.org/abs/2310.01218, sec. 3.2, and its
published code (features of codes are narrowed, laid end to end and projected to 1024 numbers); Chi et al.,
"Slot-MLLM", https://arxiv.org/abs/2505.17726; ``StableUnCLIPImg2ImgPipeline`` of diffusers for what the UNet reads.
Differs: that pipeline adds a little noise to the embedding even at noise level 0; here it is the mean of that.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.model.borrowed_decoders.code_features import FeaturesConfig, RowFeaturesConfig
from rebus.model.borrowed_decoders.contract import Condition
from rebus.model.borrowed_decoders.sequence_head import CodeReaderConfig
from rebus.tokenizers.tokens import CodeLayout

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

NUM_PARAMETERS = 870_173_124
"""Of the published UNet."""


def published_architecture() -> dict[str, Any]:
    """Returns what the published UNet has otherwise than its class by default."""
    return {
        "sample_size": 96,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2048,
    }


@dataclass(frozen=True, kw_only=True)
class UnclipConfig:
    """A UNet that paints from the embedding of a picture."""

    part = "unet"  # no field: it is the same for all
    even_noise = False

    size_px: tuple[int, int] = (768, 768)
    """Height and width of the painted pictures."""
    features: FeaturesConfig = RowFeaturesConfig()
    """Codes to features."""
    reader: CodeReaderConfig = CodeReaderConfig()
    """Features to features that know each other."""
    values_per_code: int = 32
    """Numbers of each code that are laid end to end."""
    num_prompt_rows: int = 77
    """Rows of the empty prompt, which the UNet attends to."""
    architecture: dict[str, Any] = field(default_factory=published_architecture)
    """Options of the UNet; a folder of weights brings its own."""

    def base_class(self) -> "type[UNet2DConditionModel]":
        """Returns the class of the base."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel

    def build_head(self, dim: int, layout: CodeLayout) -> "UnclipHead":
        """Builds the head with fresh weights.

        Raises:
            ValueError: if the UNet reads no embedding of a picture.
        """
        if self.architecture.get("class_embed_type") != "projection":
            got = self.architecture.get("class_embed_type")
            raise ValueError(f"class_embed_type of the UNet must be projection, got {got}")
        return UnclipHead(self, dim, layout.num_positions)

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the velocity along the arc from picture to noise."""
        prompt, labels = condition["encoder_hidden_states"], condition["class_labels"]
        return base(noisy, timesteps, prompt, class_labels=labels, return_dict=False)[0]


class UnclipHead(nn.Module):
    """Features of codes to the embedding of their picture, and to the labels that the UNet makes its time of."""

    mean: Tensor
    std: Tensor
    kept: Tensor
    empty_prompt: Tensor

    def __init__(self, config: UnclipConfig, feature_dim: int, num_positions: int) -> None:
        super().__init__()
        dim = config.architecture["projection_class_embeddings_input_dim"] // 2
        self.reader = config.reader.build(feature_dim, num_positions)
        self.narrow = nn.Linear(config.reader.dim, config.values_per_code)
        self.to_embedding = nn.Linear(num_positions * config.values_per_code, dim)
        prompt = (config.num_prompt_rows, config.architecture["cross_attention_dim"])
        # What stands beside the UNet in its pipeline, so that the adapter and the UNet are enough.
        for name, value in {
            "mean": torch.zeros(dim),
            "std": torch.ones(dim),
            "kept": torch.ones(()),
            "empty_prompt": torch.zeros(prompt),
        }.items():
            self.register_buffer(name, value)

    def embedding(self, features: Float[Tensor, "batch positions dim"]) -> Float[Tensor, "batch embedding"]:
        """Returns the embedding of a picture, as CLIP's: what is trained."""
        return self.to_embedding(self.narrow(self.reader(features)).flatten(1))

    def forward(
        self, features: Float[Tensor, "batch positions dim"], held: Bool[Tensor, "batch positions"]
    ) -> Condition:
        """Returns the labels of noise level 0, zeros for a picture without codes, and the empty prompt."""
        embedding = (self.embedding(features) - self.mean) / self.std * self.kept.sqrt() * self.std + self.mean
        half = embedding.new_zeros(len(embedding), embedding.shape[1] // 2)
        level = torch.cat([half + 1, half], dim=1)  # cosines and sines of 0
        labels = torch.cat([embedding, level], dim=1) * held.any(dim=1, keepdim=True)
        return {"class_labels": labels, "encoder_hidden_states": self.empty_prompt.expand(len(labels), -1, -1)}

    @torch.no_grad()
    def take_over(
        self,
        *,
        mean: Float[Tensor, " embedding"],
        std: Float[Tensor, " embedding"],
        kept: Float[Tensor, ""],
        empty_prompt: Float[Tensor, "rows dim"],
    ) -> None:
        """Takes over what stands beside the UNet in its pipeline.

        Args:
            mean: of the embeddings that the UNet was trained with.
            std: their standard deviations.
            kept: share of an embedding's variance that is left at noise level 0.
            empty_prompt: features of an empty text.
        """
        for buffer, value in ((self.mean, mean), (self.std, std), (self.kept, kept), (self.empty_prompt, empty_prompt)):
            if buffer.shape != value.shape:
                raise ValueError(
                    f"the UNet must go with values of shape {tuple(buffer.shape)}, got {tuple(value.shape)}"
                )
            buffer.copy_(value)
