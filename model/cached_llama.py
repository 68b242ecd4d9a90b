"""A Llama, or one of its kin, that reads batches of rows (``cached_rows.py``).

The weights are those of a stock ``transformers`` model, with matrices that read the same input laid side by side.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rebus.model.cached_rows import CachedRows, Drop, cache_dtype
from rebus.model.llama_parts import LlamaParts
from rebus.model.matrices import Matrix, block_matrices, int8_matrix, packed_matrix, plain_matrix
from rebus.model.native_llama import NativeLlama
from rebus.model.sampling import Sampling
from rebus.model.token_reduction import AttendedCodes, PromptRow, TokenReduction


class CachedLlama:
    """A Llama that reads batches of rows.

    Args:
        parts: its weights.
        native: whether single ids are read in C++ where that can be (``native_llama.py``).
        int8: whether matrices are rounded to 8 bits; they are then multiplied in torch.
    """

    def __init__(self, parts: LlamaParts, *, native: bool = True, int8: bool = False):
        self.parts = parts
        self.native = NativeLlama.of(parts) if native and not int8 else None
        # C++ has a copy of its own; where it reads the single ids, prompts are too few to be worth another.
        self._matrix = int8_matrix if int8 else packed_matrix if self.native is None else plain_matrix
        self._matrices = tuple(block_matrices(block, parts.norm_eps, self._matrix) for block in parts.blocks)
        self._heads: dict[tuple[int, int], Matrix] = {}

    def logits(self, hidden: Float[Tensor, "rows dim"], start: int, stop: int) -> Float[Tensor, "rows ids"]:
        """Returns float32 logits of the ids from ``start`` up to ``stop`` after final hidden states."""
        if self.native is not None:
            return self.native.logits(hidden, start, stop)
        if (start, stop) not in self._heads:
            self._heads[start, stop] = self._matrix(self.parts.head[start:stop])
        return self._heads[start, stop](hidden).float()

    def guided_logits(
        self, hidden: Float[Tensor, "branches rows dim"], weights: Sequence[float], start: int, stop: int
    ) -> Float[Tensor, "rows ids"]:
        """Returns the sum of the branches' logits by their weights; branches of weight 0, or none, are not computed."""
        used = [(branch, weight) for branch, weight in zip(hidden, weights, strict=False) if weight]
        each = self.logits(torch.cat([branch for branch, _ in used]), start, stop).chunk(len(used))
        logits = each[0] * used[0][1]
        for one, (_, weight) in zip(each[1:], used[1:], strict=True):
            logits.add_(one, alpha=weight)
        return logits

    def choose(
        self, logits: Float[Tensor, "rows ids"], sampling: Sampling, uniform: Float[Tensor, " rows"]
    ) -> Int[Tensor, " rows"]:
        """Returns an id for each row of logits, drawn by a number in [0, 1) for each row."""
        if self.native is not None:
            return self.native.choose(logits, sampling, uniform)
        return sampling.choose(logits, uniform.to(logits.device))

    def cache_bytes(self, num_rows: int, num_slots: int) -> int:
        """Returns how much memory the keys and values of a batch take."""
        parts = self.parts
        num_values = 2 * len(parts.blocks) * num_rows * parts.num_kv_heads * num_slots * parts.head_dim
        return num_values * cache_dtype(parts, self.native).itemsize

    def start(self, rows: Sequence[Sequence[int]], num_slots: int, known: CachedRows | None = None) -> CachedRows:
        """Returns a batch that has read one or more ids in each row, with room for ``num_slots`` ids in the longest.

        Rows that are the same are read once, and what ``known`` has read already is taken from there.
        """
        different = list(dict.fromkeys(map(tuple, rows)))
        longest = max(map(len, different))
        cache = self.rows(list(map(len, different)), num_slots if len(different) == len(rows) else longest)
        cache.ids = [list(row) for row in different]
        if known is not None:
            cache.take_over(known)
        padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in different])
        cache.read(padded[:, cache.num_read :].to(cache.starts.device))
        places = {row: index for index, row in enumerate(different)}
        return cache if len(different) == len(rows) else cache.spread([places[tuple(row)] for row in rows], num_slots)

    def start_reduced(self, rows: Sequence[PromptRow], num_slots: int, reduction: TokenReduction) -> CachedRows:
        """Returns a batch that has read prompts whose pictures are reduced."""
        cache = self.rows([len(row.positions) for row in rows], num_slots)
        embeddings = pad_sequence([row.embeddings for row in rows], batch_first=True, padding_side="left")
        positions = pad_sequence([row.positions for row in rows], batch_first=True, padding_side="left")
        cache.offsets = positions[:, -1:] + 1 - (positions.shape[1] - cache.starts)
        drop = Drop(reduction, [row.pictures for row in rows]) if isinstance(reduction, AttendedCodes) else None
        cache.read_embeddings(embeddings, positions, drop)
        return cache

    def rows(self, lengths: Sequence[int], num_slots: int) -> CachedRows:
        """Returns a batch that has read nothing yet, but is going to read prompts of these lengths."""
        return CachedRows(self.parts, self._matrices, self.native, lengths, num_slots)
