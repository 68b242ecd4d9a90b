"""The weights of a stock ``transformers`` Llama, arranged for decoding."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


class LlamaBlock(NamedTuple):
    """One block; matrices that read the same input lie below one another."""

    attention_norm: Float[Tensor, " dim"]
    query_key_value: Float[Tensor, "heads_dim dim"]
    output: Float[Tensor, "dim attended"]
    ffn_norm: Float[Tensor, " dim"]
    gate_up: Float[Tensor, "twice_ffn_dim dim"]
    down: Float[Tensor, "dim ffn_dim"]


@dataclass(frozen=True, eq=False)
class LlamaParts:
    """All that decoding reads; shares with the model what it can."""

    embeddings: Float[Tensor, "ids dim"]
    blocks: tuple[LlamaBlock, ...]
    norm: Float[Tensor, " dim"]
    head: Float[Tensor, "ids dim"]
    cosine: Float[Tensor, "positions head_dim"]
    """Of the rotary embedding, at every position that the model has."""
    sine: Float[Tensor, "positions head_dim"]
    num_heads: int
    num_kv_heads: int
    norm_eps: float


def llama_parts(model: "LlamaForCausalLM") -> LlamaParts:
    """Returns the parts of a stock Llama, or of what ``read_llama`` read."""
    config = model.config
    embeddings = model.model.embed_tokens.weight.detach()
    positions = torch.arange(config.max_position_embeddings, device=embeddings.device).unsqueeze(0)
    cosine, sine = model.model.rotary_emb(embeddings, positions)
    return LlamaParts(
        embeddings=embeddings,
        blocks=tuple(_block(layer) for layer in model.model.layers),
        norm=model.model.norm.weight.detach(),
        head=model.lm_head.weight.detach(),
        cosine=cosine[0],
        sine=sine[0],
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        norm_eps=config.rms_norm_eps,
    )


def _block(layer: Any) -> LlamaBlock:
    attention, ffn = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return LlamaBlock(
        attention_norm=layer.input_layernorm.weight.detach(),
        query_key_value=torch.cat([one.weight.detach() for one in projections]),
        output=attention.o_proj.weight.detach(),
        ffn_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=torch.cat([ffn.gate_proj.weight.detach(), ffn.up_proj.weight.detach()]),
        down=ffn.down_proj.weight.detach(),
    )
