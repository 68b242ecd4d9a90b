"""A text that a tokenizer's encoder and decoder both read, so that codes need not say again what the text says.

Source: Zha et al., "Language-Guided Image Tokenization for Generation" (TexTok), https://arxiv.org/abs/2412.05796,
sec. 3.2; Kim et al., "Democratizing Text-to-Image Masked Generative Models with Compact Text-Aware One-Dimensional
Tokens" (TA-TiTok), https://arxiv.org/abs/2501.07730, sec. 3.1 (decoder only).
Differs: the text model is small and learns with the tokenizer instead of a frozen T5 or CLIP; the text may be missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.tokenizers.text_tokenizer import SentencePieceTokenizer
from rebus.tokenizers.transformer import Transformer, sincos_positions


@dataclass(frozen=True, kw_only=True)
class TextConditionConfig:
    """A small text model whose features stand beside patches and codes."""

    num_pieces: int = 600
    """Size of the vocabulary, which is learned from the captions of the training."""
    length: int = 32
    """Pieces of a text that are read; longer ones are cut."""
    dim: int = 128
    """Width."""
    depth: int = 2
    """Transformer blocks."""
    num_heads: int = 2
    """Attention heads."""
    in_encoder: bool = True
    """Whether the encoder's queries read the text, too, and not the decoder alone."""
    drop_rate: float = 0.1
    """Share of training pictures whose text is left out, so that pictures without one can be coded."""

    def build(self, encoder_dim: int, feature_dim: int) -> "TextCondition":
        """Builds the text model for an encoder's width and that of the features a pixel decoder reads.

        Raises:
            ValueError: if the rate is no share.
        """
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"drop_rate must lie in [0, 1], got {self.drop_rate}")
        return TextCondition(self, encoder_dim, feature_dim)


class TextCondition(nn.Module):
    """Turns texts into features for the queries that read a picture and for the decoder that paints it."""

    def __init__(self, config: TextConditionConfig, encoder_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.pieces: SentencePieceTokenizer | None = None
        self.pad = SentencePieceTokenizer.special.pad
        self.embed = nn.Embedding(config.num_pieces, config.dim)
        self.positions = nn.Parameter(sincos_positions(1, config.length, config.dim))
        self.transformer = Transformer(config.dim, config.depth, config.num_heads)
        self.absent = nn.Parameter(torch.zeros(config.dim))
        self.to_encoder = nn.Linear(config.dim, encoder_dim) if config.in_encoder else None
        self.to_decoder = nn.Linear(config.dim, feature_dim)

    def ids(self, texts: Sequence[str]) -> Int[Tensor, "batch pieces"]:
        """Returns the pieces of texts, cut or padded to one length; an empty text is a missing one."""
        assert self.pieces is not None, "the vocabulary of a text condition comes from training or from its folder"
        length = self.config.length
        rows = [self.pieces.encode(text)[:length] for text in texts]
        return torch.tensor([row + [self.pad] * (length - len(row)) for row in rows], device=self.absent.device)

    def forward(self, ids: Int[Tensor, "batch pieces"]) -> Float[Tensor, "batch pieces dim"]:
        """Returns the features of texts; padding has those of a missing text."""
        known = (ids != self.pad)[..., None]
        # A text without pieces still attends to its first place, for attention to nothing is not a number.
        mask = known.transpose(1, 2) | (torch.arange(ids.shape[1], device=ids.device) == 0)
        features = self.transformer(self.embed(ids) + self.positions, mask=mask)
        return torch.where(known, features, self.absent)
