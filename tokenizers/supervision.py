"""What teaches codes their meaning: pixels to rebuild and texts to match and to tell.

The codes must serve a language model, so they are trained to carry words as well as colours. Sources: contrastive
alignment of quantized features, Ma et al., "UniTok", https://arxiv.org/abs/2502.20321, sec. 3.2; captions told from
codes with gradients into the tokenizer, Wang et al., "End-to-End Vision Tokenizer Tuning",
https://arxiv.org/abs/2505.10562, sec. 3.2.
Differs: both text models are small and trained from scratch beside the tokenizer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.transformer import Transformer, sincos_positions


@dataclass(frozen=True, kw_only=True)
class SupervisionConfig:
    """Weights of the terms; a term of weight 0 is not computed."""

    pixel_l1: float = 1.0
    """Mean absolute error of rebuilt pixels in [0, 1]."""
    pixel_l2: float = 0.5
    """Mean squared error of rebuilt pixels."""
    contrastive: float = 0.02
    """Matching pictures and captions within a batch."""
    caption: float = 0.05
    """Telling the caption from the codes, cross entropy a piece."""
    region: float = 0.1
    """Telling from each code what its place shows, where the data knows that; cross entropy a position."""
    text_dim: int = 128
    """Width of the text models."""
    text_depth: int = 2
    """Transformer blocks of each text model."""

    def build(self, num_pieces: int, pad: int, num_names: int, canvas: Canvas) -> "Supervision":
        """Builds the teachers for a vocabulary of pieces, a number of names and the features that a decoder reads.

        Codes that lie on no grid have no place of their own: ``region`` must be 0 for them.
        """
        return Supervision(self, num_pieces, pad, num_names, canvas)


class Supervision(nn.Module):
    """Scores quantized features against the pictures and captions they came from."""

    def __init__(self, config: SupervisionConfig, num_pieces: int, pad: int, num_names: int, canvas: Canvas) -> None:
        super().__init__()
        if config.region and not canvas.on_grid:
            raise ValueError(f"supervision.region must be 0 for codes that lie on no grid, got {config.region}")
        if config.text_dim < 64 or config.text_dim % 64:
            raise ValueError(f"supervision.text_dim must be a multiple of 64 (a head), got {config.text_dim}")
        self.config = config
        self.pad = pad
        dim, depth, num_heads = config.text_dim, config.text_depth, config.text_dim // 64
        self.embed_codes = nn.Linear(canvas.feature_dim, dim)
        self.code_positions = nn.Parameter(0.02 * torch.randn(canvas.num_features, dim))
        self.embed_text = nn.Embedding(num_pieces, dim)
        nn.init.normal_(self.embed_text.weight, std=dim**-0.5)
        self.code_reader = Transformer(dim, 1, num_heads)
        if config.contrastive:
            self.text_encoder = Transformer(dim, depth, num_heads)
            self.log_scale = nn.Parameter(torch.tensor(2.66))  # 1 / 0.07, as CLIP
        if config.caption:
            self.caption_decoder = Transformer(dim, depth, num_heads, has_context=True)
        if config.region:
            self.tell_region = nn.Sequential(
                nn.Linear(canvas.feature_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, num_names)
            )

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        rebuilt: Float[Tensor, "batch 3 height width"],
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "batch positions"],
        captions: Int[Tensor, "batch length"],
        regions: Int[Tensor, "batch positions"],
    ) -> dict[str, Tensor]:
        """Returns the weighted terms by name; their sum is the loss.

        Args:
            images: in [0, 1].
            rebuilt: the same pictures painted from the features.
            features: quantized features, zero or anything where ``mask`` is False.
            mask: which positions count.
            captions: ids of text, padded.
            regions: what each position shows; 0 is the ground.
        """
        losses = {}
        if self.config.pixel_l1:
            losses["pixel_l1"] = self.config.pixel_l1 * F.l1_loss(rebuilt, images)
        if self.config.pixel_l2:
            losses["pixel_l2"] = self.config.pixel_l2 * F.mse_loss(rebuilt, images)
        if self.config.contrastive or self.config.caption:
            codes = self.embed_codes(features) * mask[..., None]
            codes = self.code_reader(codes + self.code_positions)
            if self.config.contrastive:
                losses["contrastive"] = self.config.contrastive * self._contrastive(codes, captions)
            if self.config.caption:
                losses["caption"] = self.config.caption * self._caption(codes, captions)
        if self.config.region:
            losses["region"] = self.config.region * self._region(features, regions)
        return losses

    def _region(self, features: Tensor, regions: Tensor) -> Tensor:
        errors = F.cross_entropy(self.tell_region(features).float().flatten(0, 1), regions.flatten(), reduction="none")
        # The ground fills most of a picture and is soon told: things weigh ten times as much.
        weights = torch.where(regions.flatten() == 0, 0.1, 1.0)
        return (errors * weights).sum() / weights.sum()

    def _contrastive(self, codes: Tensor, captions: Tensor) -> Tensor:
        known = (captions != self.pad)[..., None]
        texts = self.text_encoder(self._embed_text(captions), mask=known.transpose(1, 2))
        text = F.normalize((texts * known).sum(dim=1) / known.sum(dim=1).clamp_min(1), dim=-1)
        picture = F.normalize(codes.mean(dim=1), dim=-1)
        logits = (picture @ text.T).float() * self.log_scale.clamp(max=4.6).exp()
        # Two pictures of one batch may have the same caption: either match is right.
        same = (captions[:, None] == captions[None]).all(dim=-1)
        target = same / same.sum(dim=-1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def _caption(self, codes: Tensor, captions: Tensor) -> Tensor:
        length = captions.shape[1] - 1
        causal = torch.ones(1, length, length, dtype=torch.bool, device=captions.device).tril()
        told = self.caption_decoder(self._embed_text(captions[:, :-1]), causal, codes)
        logits = F.linear(told, self.embed_text.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), captions[:, 1:].flatten(), ignore_index=self.pad)

    def _embed_text(self, captions: Tensor) -> Tensor:
        features = self.embed_text(captions) * self.embed_text.embedding_dim**0.5
        return features + sincos_positions(1, captions.shape[1], features.shape[-1]).to(features)
