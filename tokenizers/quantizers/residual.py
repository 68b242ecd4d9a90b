"""Residual quantization: each level codes what the levels before it have left, so that codes add up to the features.

Source: Lee et al., "Autoregressive Image Generation using Residual Quantization", https://arxiv.org/abs/2203.01941,
sec. 3.1 (one code book for all levels, one straight-through estimate); Zeghidour et al., "SoundStream",
https://arxiv.org/abs/2107.03312, algorithm 1 (a code book a level).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.contract import Quantized, Quantizer, mean_terms, registered
from rebus.tokenizers.quantizers.simple import SimpleConfig


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """Several levels of one kind of quantizer."""

    quantizer: SimpleConfig
    """What codes each level."""
    depth: int
    """Levels; the streams are those of the first, then those of the second and so on."""
    is_shared: bool = False
    """Whether all levels have one code book."""
    shrink: float = 1.0
    """How many times smaller the codes of a level are than those of the one before; 1 where they learn their size."""

    def build(self) -> "Residual":
        """Builds the quantizer."""
        books = [self.quantizer.build() for _ in range(1 if self.is_shared else self.depth)]
        return Residual(books, self.depth, self.shrink)


class Residual(nn.Module):
    """Adds up the codes of all levels; the gradient passes straight through their sum.

    Every level is taught by its own terms, of which the mean counts: for vectors those are the distances between the
    features and the sum of the codes up to a level. A book for all levels moves once a step, by what all of them coded;
    for that it is searched twice.

    Differs: the terms of a level are those of its features at the size at which they are coded, so that a smaller one
    counts as much as the first.

    Raises:
        ValueError: if there is no level, or codes shrink to nothing or below.
    """

    def __init__(self, books: Sequence[Quantizer], depth: int, shrink: float) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be 1 or more, got {depth}")
        if shrink <= 0:
            raise ValueError(f"shrink must be above 0, got {shrink}")
        assert len(books) in (1, depth), "one book for all levels, or one for each"
        self.books: Sequence[Quantizer] = registered(books)
        self.levels = [(books[level % len(books)], shrink**level) for level in range(depth)]
        self.dim = books[0].dim
        self.codebook_sizes = books[0].codebook_sizes * depth
        self.level_streams = len(books[0].codebook_sizes)

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`."""
        features = features.float()
        if self.training and len(self.books) < len(self.levels):
            return self._teach_at_once(features, mask)
        return self._teach_in_turn(features, mask)

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the sums of what the codes of all levels stand for."""
        return self._codes(ids).sum(dim=0)

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces codes of all levels by wrong ones, each as its quantizer does."""
        parts = zip(self.levels, ids.split(self.level_streams, dim=-1), strict=True)
        return torch.cat([book.perturb(part, rate, generator) for (book, _), part in parts], dim=-1)

    def _codes(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "levels batch positions dim"]:
        parts = zip(self.levels, ids.split(self.level_streams, dim=-1), strict=True)
        return torch.stack([book.lookup(part) / scale for (book, scale), part in parts])

    def _teach_in_turn(self, features: Tensor, mask: Tensor | None) -> Quantized:
        total, parts = torch.zeros_like(features), []
        for book, scale in self.levels:
            part = book((features - total) * scale, mask)
            total = total + part.features.detach() / scale
            parts.append(part)
        ids = torch.cat([part.ids for part in parts], dim=-1)
        losses, stats = mean_terms([part.losses for part in parts]), mean_terms([part.stats for part in parts])
        return Quantized(total + (features - features.detach()), ids, losses, stats)

    def _teach_at_once(self, features: Tensor, mask: Tensor | None) -> Quantized:
        book: Any = self.books[0]
        book.eval()  # it stands still while one level searches after another
        with torch.no_grad():
            coded = self._teach_in_turn(features, mask)
            codes = self._codes(coded.ids)
        book.train()
        befores = codes.cumsum(dim=0) - codes
        rests = [(features - before) * scale for before, (_, scale) in zip(befores, self.levels, strict=True)]
        taught = book(torch.cat(rests, dim=1), None if mask is None else mask.repeat(1, len(rests)))
        quantized = coded.features + (features - features.detach())
        return Quantized(quantized, coded.ids, taught.losses, taught.stats)
