"""Llama's blocks over a batch of rows with a static key-value cache: the arithmetic of decoding.

The weights are those of a stock ``transformers`` model, with matrices that read the same input laid side by side. Rows
of any length share one batch: each ends at the same slot of the cache, starts where its own text starts, and counts its
positions from there.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class _Block(NamedTuple):
    attention_norm: Tensor
    query_key_value: Tensor
    output: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor


class CachedLlama:
    """The body of a stock Llama, from ids to final hidden states; shares all it can with the model it is made from."""

    def __init__(self, model: "LlamaForCausalLM"):
        config = model.config
        self.embeddings = model.model.embed_tokens.weight.detach()
        self.norm = model.model.norm.weight.detach()
        self.eps: float = config.rms_norm_eps
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads or config.num_attention_heads
        self.max_positions: int = config.max_position_embeddings
        self.blocks = [_block(layer) for layer in model.model.layers]
        positions = torch.arange(self.max_positions, device=self.embeddings.device).unsqueeze(0)
        cosine, sine = model.model.rotary_emb(self.embeddings, positions)
        self.cosine, self.sine = cosine[0], sine[0]

    def start(self, rows: Sequence[Sequence[int]], num_slots: int) -> "CachedRows":
        """Returns a batch that has read one or more ids in each row, with room for ``num_slots`` ids in the longest."""
        return CachedRows(self, rows, num_slots)


class CachedRows:
    """Rows that a model has read so far."""

    last: Float[Tensor, "rows dim"]
    """The final hidden state of each row's last id: what predicts the next."""

    def __init__(self, body: CachedLlama, rows: Sequence[Sequence[int]], num_slots: int):
        self.body = body
        device, dtype = body.embeddings.device, body.embeddings.dtype
        longest = max(len(row) for row in rows)
        missing = [longest - len(row) for row in rows]
        self.starts = torch.tensor(missing, device=device).unsqueeze(1)
        self.num_read = 0
        head_dim = body.blocks[0].output.shape[1] // body.num_heads
        shape = (len(body.blocks), len(rows), body.num_kv_heads, num_slots, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.readable = torch.arange(num_slots, device=device) >= self.starts
        padded = [[0] * number + list(row) for number, row in zip(missing, rows, strict=True)]
        self.read(torch.tensor(padded, device=device))

    def read(self, ids: Int[Tensor, "rows length"]) -> None:
        """Lets every row read its next ids."""
        body, start, stop = self.body, self.num_read, self.num_read + ids.shape[1]
        slots = torch.arange(start, stop, device=ids.device)
        positions = (slots - self.starts).clamp(0, body.max_positions - 1)  # padding and finished rows lie beyond
        turns = body.cosine[positions].unsqueeze(2), body.sine[positions].unsqueeze(2)
        mask = self._mask(slots, stop)
        hidden = F.embedding(ids, body.embeddings)
        for index, block in enumerate(body.blocks):
            normed = F.rms_norm(hidden, hidden.shape[-1:], block.attention_norm, body.eps)
            hidden = hidden + F.linear(
                self._attend(index, F.linear(normed, block.query_key_value), turns, mask), block.output
            )
            normed = F.rms_norm(hidden, hidden.shape[-1:], block.ffn_norm, body.eps)
            gate, up = F.linear(normed, block.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, block.down)
        self.num_read = stop
        self.last = F.rms_norm(hidden[:, -1], hidden.shape[-1:], body.norm, body.eps)

    def _attend(
        self,
        layer: int,
        projected: Float[Tensor, "rows length width"],
        turns: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "rows 1 length slots"],
    ) -> Float[Tensor, "rows length dim"]:
        body, start, stop = self.body, self.num_read, self.num_read + projected.shape[1]
        num_turned = body.num_heads + body.num_kv_heads
        heads = rearrange(
            projected, "rows length (heads dim) -> rows length heads dim", heads=num_turned + body.num_kv_heads
        )
        turned = _turn(heads[:, :, :num_turned], *turns).transpose(1, 2)
        self.keys[layer, :, :, start:stop] = turned[:, body.num_heads :]
        self.values[layer, :, :, start:stop] = heads[:, :, num_turned:].transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            turned[:, : body.num_heads],
            self.keys[layer, :, :, :stop],
            self.values[layer, :, :, :stop],
            attn_mask=mask,
            enable_gqa=body.num_kv_heads < body.num_heads,
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


def _block(layer: Any) -> _Block:
    attention, ffn = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _Block(
        attention_norm=layer.input_layernorm.weight.detach(),
        query_key_value=torch.cat([one.weight.detach() for one in projections]),
        output=attention.o_proj.weight.detach(),
        ffn_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=torch.cat([ffn.gate_proj.weight.detach(), ffn.up_proj.weight.detach()]),
        down=ffn.down_proj.weight.detach(),
    )
