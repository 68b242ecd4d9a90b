"""How the next id is drawn from logits: temperature, top-k, top-p and min-p, in this order, as in ``transformers``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Which ids may be drawn, and how boldly."""

    temperature: float = 1.0
    """By which logits are divided; 0 always takes the likeliest id."""
    top_k: int | None = None
    """Only so many of the likeliest ids."""
    top_p: float | None = None
    """Only the fewest of the likeliest ids that together have this probability."""
    min_p: float | None = None
    """Only ids at least this probable beside the likeliest."""
    repetition_penalty: float = 1.0
    """By which logits of ids that the row has had are divided where positive, multiplied where negative."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be above 0 and finite, got {self.repetition_penalty}")

    def penalized(
        self, logits: Float[Tensor, "rows ids"], past: Sequence[Sequence[int]], first_id: int
    ) -> Float[Tensor, "rows ids"]:
        """Returns logits with the repetition penalty.

        Args:
            logits: of the ids from ``first_id`` on.
            past: ids that each row has had.
            first_id: of the first logit.

        Source: Keskar et al., "CTRL", https://arxiv.org/abs/1909.05858, sec. 4.1; as in ``transformers``.
        """
        had = torch.zeros_like(logits, dtype=torch.bool)
        for row, ids in enumerate(past):
            had[row, [token - first_id for token in set(ids) if 0 <= token - first_id < logits.shape[1]]] = True
        factors = torch.where(logits < 0, self.repetition_penalty, 1 / self.repetition_penalty)
        return torch.where(had, logits * factors, logits)

    def choose(self, logits: Float[Tensor, "rows ids"], uniform: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Returns an id for each row, drawn by a number in [0, 1) for each row."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        kept, ids = self.candidates(logits)
        cumulative = kept.softmax(dim=-1).cumsum(dim=-1)
        # Scaled to the rounded sum, so that the draw stays below it and never falls on an id of probability 0.
        drawn = (uniform.unsqueeze(1) * cumulative[:, -1:] >= cumulative).sum(dim=-1, keepdim=True)
        return ids.gather(1, drawn.clamp_max(ids.shape[1] - 1)).squeeze(1)

    def probabilities(self, logits: Float[Tensor, "rows ids"]) -> Float[Tensor, "rows ids"]:
        """Returns how probable each id is to be chosen."""
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(1, logits.argmax(dim=-1, keepdim=True), 1.0)
        kept, ids = self.candidates(logits)
        return torch.zeros_like(logits).scatter(1, ids, kept.softmax(dim=-1))

    def candidates(
        self, logits: Float[Tensor, "rows ids"]
    ) -> tuple[Float[Tensor, "rows kept"], Int[Tensor, "rows kept"]]:
        """Returns the logits of the ids that may be drawn, and those ids; the likeliest first with top-k or top-p.

        Logits of ids that top-p or min-p has dropped are -inf. Of ids equal to the last of top-k, as many are kept as
        there is room for, where ``transformers`` keeps all. The temperature must not be 0.
        """
        kept = logits.float() / self.temperature
        ids = torch.arange(kept.shape[-1], device=kept.device).expand_as(kept)
        if self.top_k is not None or self.top_p is not None:  # to sort takes longer than all the rest
            kept, ids = kept.topk(min(self.top_k or kept.shape[-1], kept.shape[-1]), dim=-1)
        if self.top_p is not None:
            probabilities = kept.softmax(dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities
            dropped = before >= self.top_p
            dropped[:, 0] = False
            kept = kept.masked_fill(dropped, float("-inf"))
        if self.min_p is not None:
            kept = kept.masked_fill((kept - kept.amax(dim=-1, keepdim=True)).exp() < self.min_p, float("-inf"))
        return kept, ids
