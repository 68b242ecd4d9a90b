"""Llama's blocks over a batch of rows with a static key-value cache: the arithmetic of decoding.

The weights are those of a stock ``transformers`` model, with matrices that read the same input laid side by side. Rows
of any length share one batch: each ends at the same slot of the cache, starts where its own text starts, and counts its
positions from there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rebus.model.llama_parts import LlamaParts
from rebus.model.native_llama import NativeLlama


class CachedLlama:
    """A Llama that reads batches of rows.

    Args:
        parts: its weights.
        native: whether single ids are read in C++ where that can be (``native_llama.py``).
    """

    def __init__(self, parts: LlamaParts, *, native: bool = True):
        self.parts = parts
        self.max_positions = len(parts.cosine)
        self.native = NativeLlama.of(parts) if native else None

    def logits(self, hidden: Float[Tensor, "rows dim"], start: int, stop: int) -> Float[Tensor, "rows ids"]:
        """Returns float32 logits of the ids from ``start`` up to ``stop`` after final hidden states."""
        if self.native is not None:
            return self.native.logits(hidden, start, stop)
        return F.linear(hidden, self.parts.head[start:stop]).float()

    def start(self, rows: Sequence[Sequence[int]], num_slots: int) -> "CachedRows":
        """Returns a batch that has read one or more ids in each row, with room for ``num_slots`` ids in the longest."""
        return CachedRows(self, rows, num_slots)


class CachedRows:
    """Rows that a model has read so far."""

    last: Float[Tensor, "rows dim"]
    """The final hidden state of each row's last id: what predicts the next."""

    def __init__(self, body: CachedLlama, rows: Sequence[Sequence[int]], num_slots: int):
        self.body, self.parts = body, body.parts
        parts, device, dtype = body.parts, body.parts.embeddings.device, body.parts.embeddings.dtype
        longest = max(len(row) for row in rows)
        missing = [longest - len(row) for row in rows]
        self.starts = torch.tensor(missing, device=device).unsqueeze(1)
        self.num_read = 0
        shape = (len(parts.blocks), len(rows), parts.num_kv_heads, num_slots, parts.cosine.shape[1])
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.readable = torch.arange(num_slots, device=device) >= self.starts
        padded = [[0] * number + list(row) for number, row in zip(missing, rows, strict=True)]
        self.read(torch.tensor(padded, device=device))

    def read(self, ids: Int[Tensor, "rows length"]) -> None:
        """Lets every row read its next ids."""
        body, parts, start, stop = self.body, self.parts, self.num_read, self.num_read + ids.shape[1]
        if ids.shape[1] == 1 and body.native is not None:
            self.last = body.native.step(ids[:, 0].contiguous(), self.starts[:, 0], start, self.keys, self.values)
            self.num_read = stop
            return
        slots = torch.arange(start, stop, device=ids.device)
        positions = (slots - self.starts).clamp(0, body.max_positions - 1)  # padding and finished rows lie beyond
        turns = parts.cosine[positions].unsqueeze(2), parts.sine[positions].unsqueeze(2)
        mask = self._mask(slots, stop)
        hidden = F.embedding(ids, parts.embeddings)
        for index, block in enumerate(parts.blocks):
            normed = F.rms_norm(hidden, hidden.shape[-1:], block.attention_norm, parts.norm_eps)
            hidden = hidden + F.linear(
                self._attend(index, F.linear(normed, block.query_key_value), turns, mask), block.output
            )
            normed = F.rms_norm(hidden, hidden.shape[-1:], block.ffn_norm, parts.norm_eps)
            gate, up = F.linear(normed, block.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, block.down)
        self.num_read = stop
        self.last = F.rms_norm(hidden[:, -1], hidden.shape[-1:], parts.norm, parts.norm_eps)

    def _attend(
        self,
        layer: int,
        projected: Float[Tensor, "rows length width"],
        turns: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "rows 1 length slots"],
    ) -> Float[Tensor, "rows length dim"]:
        parts, start, stop = self.parts, self.num_read, self.num_read + projected.shape[1]
        num_turned = parts.num_heads + parts.num_kv_heads
        heads = rearrange(
            projected, "rows length (heads dim) -> rows length heads dim", heads=num_turned + parts.num_kv_heads
        )
        turned = _turn(heads[:, :, :num_turned], *turns).transpose(1, 2)
        self.keys[layer, :, :, start:stop] = turned[:, parts.num_heads :]
        self.values[layer, :, :, start:stop] = heads[:, :, num_turned:].transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            turned[:, : parts.num_heads],
            self.keys[layer, :, :, :stop],
            self.values[layer, :, :, :stop],
            attn_mask=mask,
            enable_gqa=parts.num_kv_heads < parts.num_heads,
        )
        return rearrange(attended, "rows heads length dim -> rows length (heads dim)")

    def _mask(self, slots: Int[Tensor, " length"], stop: int) -> Bool[Tensor, "rows 1 length slots"]:
        """Returns which slots each new slot may look at: those of its row up to itself, and always itself."""
        past = torch.arange(stop, device=slots.device) <= slots.unsqueeze(1)
        itself = torch.arange(stop, device=slots.device) == slots.unsqueeze(1)
        return ((self.readable[:, None, :stop] & past) | itself).unsqueeze(1)


def _turn(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Returns heads turned by their positions (rotary embedding, halves as in ``transformers``)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine
