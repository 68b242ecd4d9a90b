"""Codes shall match and tell the captions of their pictures, as small text models beside the tokenizer read them.

Sources: contrastive alignment of quantized features, Ma et al., "UniTok", https://arxiv.org/abs/2502.20321, sec. 3.2,
with the losses of Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP),
https://arxiv.org/abs/2103.00020, fig. 3, and of Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (SigLIP),
https://arxiv.org/abs/2303.15343, sec. 3.2; captions told from codes with gradients into the tokenizer, Wang et al.,
"End-to-End Vision Tokenizer Tuning", https://arxiv.org/abs/2505.10562, sec. 3.2.
Differs: the text models are small and trained from scratch beside the tokenizer; `language_caption` has a large one.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.contract import Taught, Term
from rebus.tokenizers.transformer import Transformer, sincos_positions

ContrastiveLoss = Literal["softmax", "sigmoid"]


class Texts(Term):
    """Matching pictures and captions within a batch, and telling the caption from the codes; a reader serves both."""

    def __init__(
        self,
        *,
        contrastive: float,
        caption: float,
        loss: ContrastiveLoss,
        canvas: Canvas,
        num_pieces: int,
        pad: int,
        dim: int,
        depth: int,
    ) -> None:
        super().__init__()
        if dim < 64 or dim % 64:
            raise ValueError(f"supervision.text_dim must be a multiple of 64 (a head), got {dim}")
        self.contrastive, self.caption, self.loss, self.pad = contrastive, caption, loss, pad
        num_heads = dim // 64
        self.embed_codes = nn.Linear(canvas.feature_dim, dim)
        self.code_positions = nn.Parameter(0.02 * torch.randn(canvas.num_features, dim))
        self.embed_text = nn.Embedding(num_pieces, dim)
        nn.init.normal_(self.embed_text.weight, std=dim**-0.5)
        self.code_reader = Transformer(dim, 1, num_heads)
        if contrastive:
            self.text_encoder = Transformer(dim, depth, num_heads)
            # Of one dimension, since DeepSpeed cannot send numbers without one. 1 / 0.07 and 10:
            self.log_scale = nn.Parameter(torch.full((1,), 2.66 if loss == "softmax" else 2.3))
            self.bias = nn.Parameter(torch.full((1,), -10.0)) if loss == "sigmoid" else None
        if caption:
            self.caption_decoder = Transformer(dim, depth, num_heads, has_context=True)

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns ``contrastive`` and ``caption``, as far as they weigh."""
        codes = self.embed_codes(taught.coded.features) * taught.coded.features_mask[..., None]
        codes = self.code_reader(codes + self.code_positions[: codes.shape[1]])
        losses = {}
        if self.contrastive:
            losses["contrastive"] = self.contrastive * self._matching(codes, taught.captions)
        if self.caption:
            losses["caption"] = self.caption * self._telling(codes, taught.captions)
        return losses

    def _matching(self, codes: Tensor, captions: Tensor) -> Tensor:
        known = (captions != self.pad)[..., None]
        texts = self.text_encoder(self._embed_text(captions), mask=known.transpose(1, 2))
        text = F.normalize((texts * known).sum(dim=1) / known.sum(dim=1).clamp_min(1), dim=-1)
        picture = F.normalize(codes.mean(dim=1), dim=-1)
        logits = (picture @ text.T).float() * self.log_scale.clamp(max=4.6).exp()
        # Two pictures of one batch may have the same caption: either match is right.
        same = (captions[:, None] == captions[None]).all(dim=-1)
        return softmax_matching(logits, same) if self.bias is None else sigmoid_matching(logits + self.bias, same)

    def _telling(self, codes: Tensor, captions: Tensor) -> Tensor:
        length = captions.shape[1] - 1
        causal = torch.ones(1, length, length, dtype=torch.bool, device=captions.device).tril()
        told = self.caption_decoder(self._embed_text(captions[:, :-1]), causal, codes)
        logits = F.linear(told, self.embed_text.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), captions[:, 1:].flatten(), ignore_index=self.pad)

    def _embed_text(self, captions: Tensor) -> Tensor:
        features = self.embed_text(captions) * self.embed_text.embedding_dim**0.5
        return features + sincos_positions(1, captions.shape[1], features.shape[-1]).to(features)


def softmax_matching(
    logits: Float[Tensor, "pictures texts"], same: Bool[Tensor, "pictures texts"]
) -> Float[Tensor, ""]:
    """Returns the cross entropy of finding a picture's text among all and a text's picture; see CLIP."""
    target = same / same.sum(dim=-1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def sigmoid_matching(
    logits: Float[Tensor, "pictures texts"], same: Bool[Tensor, "pictures texts"]
) -> Float[Tensor, ""]:
    """Returns the error of saying for each pair by itself whether it belongs together, per picture; see SigLIP."""
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum(dim=-1).mean()
