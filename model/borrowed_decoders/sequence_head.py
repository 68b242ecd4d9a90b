"""Codes in place of a text: a small transformer makes of them the sequence that a base attends to.

Source: Jin et al., "Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization",
https://arxiv.org/abs/2309.04669, sec. 3.1 (blocks over the codes, whose output the UNet attends to).
Differs: as many positions as codes, where LaVIT has 256 queries; the pooled vector is a mean, not an attention.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.model.borrowed_decoders.contract import Condition
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class CodeReaderConfig:
    """The transformer over the features of codes."""

    dim: int = 768
    """Width."""
    depth: int = 4
    """Blocks; LaVIT has 12."""
    num_heads: int = 12
    """Attention heads."""

    def build(self, feature_dim: int, num_positions: int) -> "CodeReader":
        """Builds the transformer with fresh weights."""
        return CodeReader(self, feature_dim, num_positions)


class CodeReader(nn.Module):
    """Features of codes to features that know their place and each other."""

    def __init__(self, config: CodeReaderConfig, feature_dim: int, num_positions: int) -> None:
        super().__init__()
        self.embed = nn.Linear(feature_dim, config.dim)
        self.positions = nn.Parameter(0.02 * torch.randn(num_positions, config.dim))
        self.blocks = Transformer(config.dim, config.depth, config.num_heads)

    def forward(self, features: Float[Tensor, "batch positions dim"]) -> Float[Tensor, "batch positions width"]:
        """Returns features of about unit spread."""
        return self.blocks(self.embed(features) + self.positions)


class SequenceHead(nn.Module):
    """What a base takes for the features of a text, and for its pooled vector if it reads one."""

    def __init__(
        self, reader: CodeReaderConfig, feature_dim: int, num_positions: int, *, width: int, pooled_width: int = 0
    ) -> None:
        super().__init__()
        self.reader = reader.build(feature_dim, num_positions)
        self.to_sequence = nn.Linear(reader.dim, width)
        self.to_pooled = nn.Linear(reader.dim, pooled_width) if pooled_width else None

    def forward(
        self, features: Float[Tensor, "batch positions dim"], held: Bool[Tensor, "batch positions"]
    ) -> Condition:
        """Returns the sequence, as long as a whole picture's codes, and the pooled vector.

        Without a mask: a missing code has features of its own, so that a base sees how many there are.
        """
        read = self.reader(features)
        condition = {"encoder_hidden_states": self.to_sequence(read)}
        if self.to_pooled is not None:
            condition["pooled_projections"] = self.to_pooled(read.mean(dim=1))
        return condition
