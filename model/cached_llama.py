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
        self.max_positions = len(parts.rotary[0].cosine)
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
        shape = (len(parts.blocks), len(rows), parts.num_kv_heads, num_slots, parts.rotary[0].cosine.shape[1])
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
        turns = {rotary: (rotary.cosine[positions], rotary.sine[positions]) for rotary in set(parts.rotary)}
        masks = {window: self._mask(slots, stop, window) for window in set(parts.windows)}
        hidden = F.embedding(ids, parts.embeddings)
        hidden = hidden * torch.tensor(parts.embedding_scale, dtype=hidden.dtype)
        for index, block in enumerate(parts.blocks):
            projected = F.linear(
                self._normed(hidden, block.attention_norm), block.query_key_value, block.query_key_value_bias
            )
            attended = self._attend(index, projected, turns[parts.rotary[index]], masks[parts.windows[index]])
            hidden = hidden + self._normed(F.linear(attended, block.output), block.attended_norm)
            gate, up = F.linear(self._normed(hidden, block.ffn_norm), block.gate_up).chunk(2, dim=-1)
            gate = F.silu(gate) if parts.activation == "silu" else F.gelu(gate, approximate="tanh")
            hidden = hidden + self._normed(F.linear(gate * up, block.down), block.ffn_output_norm)
        self.num_read = stop
        self.last = self._normed(hidden[:, -1], parts.norm)

    def _normed(self, values: Float[Tensor, "... dim"], factors: Float[Tensor, " dim"] | None) -> Tensor:
        """Returns values over their root mean square times factors, in the factors' dtype; as they are without any."""
        if factors is None:
            return values
        normed = F.rms_norm(values.to(factors.dtype), factors.shape, factors, self.parts.norm_eps)
        return normed.to(values.dtype)

    def _attend(
        self,
        layer: int,
        projected: Float[Tensor, "rows length width"],
        turns: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "rows 1 length slots"],
    ) -> Float[Tensor, "rows length dim"]:
        parts, block, start, stop = (
            self.parts,
            self.parts.blocks[layer],
            self.num_read,
            self.num_read + projected.shape[1],
        )
        num_turned = parts.num_heads + parts.num_kv_heads
        heads = rearrange(
            projected, "rows length (heads dim) -> rows heads length dim", heads=num_turned + parts.num_kv_heads
        )
        queries = self._normed(heads[:, : parts.num_heads], block.query_norm)
        keys = self._normed(heads[:, parts.num_heads : num_turned], block.key_norm)
        self.keys[layer, :, :, start:stop] = _turn(keys, *turns)
        self.values[layer, :, :, start:stop] = heads[:, num_turned:]
        attended = F.scaled_dot_product_attention(
            _turn(queries, *turns),
            self.keys[layer, :, :, :stop],
            self.values[layer, :, :, :stop],
            attn_mask=mask,
            scale=parts.attention_scale,
            enable_gqa=parts.num_kv_heads < parts.num_heads,
        )
        return rearrange(attended, "rows heads length dim -> rows length (heads dim)")

    def _mask(
        self, slots: Int[Tensor, " length"], stop: int, window: int | None
    ) -> Bool[Tensor, "rows 1 length slots"]:
        """Returns which slots each new slot may look at: those of its row and window up to itself, and itself."""
        back = slots.unsqueeze(1) - torch.arange(stop, device=slots.device)
        near = (back >= 0) if window is None else (back >= 0) & (back < window)
        return ((self.readable[:, None, :stop] & near) | (back == 0)).unsqueeze(1)


def _turn(
    heads: Float[Tensor, "rows heads length dim"],
    cosine: Float[Tensor, "rows length dim"],
    sine: Float[Tensor, "rows length dim"],
) -> Float[Tensor, "rows heads length dim"]:
    """Returns heads turned by their positions (rotary embedding, halves as in ``transformers``)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sine.unsqueeze(1)
