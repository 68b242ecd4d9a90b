"""Lumina Image 2.0 as a decoder: codes are the caption that its transformer reads in one sequence with the picture.

Source: Qin et al., "Lumina-Image 2.0", https://arxiv.org/abs/2503.21758, sec. 3.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.model.borrowed_decoders.code_features import FeaturesConfig, RowFeaturesConfig
from rebus.model.borrowed_decoders.contract import Condition
from rebus.model.borrowed_decoders.noising import NUM_TIMESTEPS
from rebus.model.borrowed_decoders.sequence_head import CodeReaderConfig, SequenceHead
from rebus.tokenizers.tokens import CodeLayout

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel

NUM_PARAMETERS = 2_609_769_152
"""Of the published transformer."""


def published_architecture() -> dict[str, Any]:
    """Returns the options of the published transformer."""
    return {"cap_feat_dim": 2304, "axes_lens": [300, 512, 512]}


@dataclass(frozen=True, kw_only=True)
class Lumina2Config:
    """A transformer over codes and patches, whose places in the sequence are counted through."""

    part = "transformer"  # no field: it is the same for all
    even_noise = True

    size_px: tuple[int, int] = (1024, 1024)
    """Height and width of the painted pictures."""
    features: FeaturesConfig = RowFeaturesConfig()
    """Codes to features."""
    reader: CodeReaderConfig = CodeReaderConfig()
    """Features to a sequence."""
    architecture: dict[str, Any] = field(default_factory=published_architecture)
    """Options of the transformer; a folder of weights brings its own."""

    def base_class(self) -> "type[Lumina2Transformer2DModel]":
        """Returns the class of the base."""
        from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel

        return Lumina2Transformer2DModel

    def build_head(self, dim: int, layout: CodeLayout) -> SequenceHead:
        """Builds the head with fresh weights.

        Raises:
            ValueError: if there are more codes than the transformer has places for before a picture.
        """
        places = self.architecture["axes_lens"][0] - 1
        if layout.num_positions > places:
            raise ValueError(f"codes of a picture must be at most {places} for Lumina 2, got {layout.num_positions}")
        return SequenceHead(self.reader, dim, layout.num_positions, width=self.architecture["cap_feat_dim"])

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns the velocity towards noise; Lumina itself has its noise at time 0 and gives that towards pictures."""
        sequence = condition["encoder_hidden_states"]
        mask = torch.ones(sequence.shape[:2], dtype=torch.int64, device=sequence.device)
        return -base(noisy, 1 - timesteps / NUM_TIMESTEPS, sequence, mask, return_dict=False)[0]
