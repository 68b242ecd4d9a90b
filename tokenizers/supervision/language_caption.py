"""A language model shall tell the caption from the codes; its error reaches back into the tokenizer.

Sources: Wang et al., "End-to-End Vision Tokenizer Tuning" (ETT), https://arxiv.org/abs/2505.10562, sec. 3.2; Geng et
al., "X-Omni", https://arxiv.org/abs/2507.22058, sec. 3.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.stock_model import load_stock
from rebus.tokenizers.supervision.contract import Frozen, Taught, Term


@dataclass(frozen=True, kw_only=True)
class LanguageCaptionConfig:
    """The language model, and whether it learns, too."""

    path: Path
    """Folder of a causal language model of ``transformers`` with its text tokenizer, which reads all captions then."""
    weight: float = 1.0
    """Weight of the cross entropy a piece."""
    learns: bool = False
    """Whether the language model learns beside the tokenizer; what it becomes is not kept."""

    def build(self, canvas: Canvas, num_pieces: int, pad: int) -> "LanguageCaption":
        """Loads the model and builds the term.

        Raises:
            ValueError: if there is none, or it does not know all pieces of the captions.
        """
        model: PreTrainedModel = load_stock(self.path, AutoModelForCausalLM)
        return LanguageCaption(model, canvas, num_pieces, pad, weight=self.weight, learns=self.learns)


class LanguageCaption(Term):
    """Cross entropy of the caption, which a language model tells after it has read the projected codes."""

    compiles_whole = False

    def __init__(
        self, model: PreTrainedModel, canvas: Canvas, num_pieces: int, pad: int, *, weight: float, learns: bool
    ) -> None:
        super().__init__()
        embeddings = model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        if embeddings.num_embeddings < num_pieces:
            wanted = f"all {num_pieces} pieces of the captions"
            raise ValueError(f"the language model must know {wanted}, got {embeddings.num_embeddings} embeddings")
        self.dim = dim = embeddings.embedding_dim
        self.model = model if learns else Frozen(model)
        self.project = nn.Sequential(nn.Linear(canvas.feature_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        # Codes enter as long as words do, lest the model has to get used to them first.
        self.scale = embeddings.weight.detach().float().norm(dim=-1).mean().item() / dim**0.5
        self.pad, self.weight = pad, weight

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns ``language_caption``."""
        coded, told, target = taught.coded, taught.captions[:, :-1], taught.captions[:, 1:]
        model = self.model.network if isinstance(self.model, Frozen) else self.model
        assert isinstance(model, PreTrainedModel)
        codes = F.layer_norm(self.project(coded.features), (self.dim,)) * self.scale
        words = model.get_input_embeddings()(told)
        # Where one piece opens texts and fills up rows, the first is no padding.
        known = F.pad(told[:, 1:] != self.pad, (1, 0), value=True)
        logits = model(
            inputs_embeds=torch.cat([codes.to(words.dtype), words], dim=1),
            attention_mask=torch.cat([coded.features_mask, known], dim=1).long(),
            logits_to_keep=told.shape[1],
            use_cache=False,
        ).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=self.pad)
        return {"language_caption": self.weight * loss}
