"""The weights of a stock ``transformers`` model that is built like Llama, arranged for decoding.

Mistral, Qwen2, Qwen2.5, Qwen3, Gemma and Gemma 3 are Llamas with a window, biases, more norms or other constants.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text")
"""The ``model_type`` of the configs whose models are decoded here."""
_ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone; with others, what is cached would go stale."""
_ABSENT = (
    *("attention_bias", "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping"),
    "use_bidirectional_attention",
)
"""Settings of a config that decoding does not know how to follow."""


class LlamaBlock(NamedTuple):
    """One block; matrices that read the same input lie below one another. What a family lacks is None."""

    attention_norm: Float[Tensor, " dim"]
    query_key_value: Float[Tensor, "heads_dim dim"]
    output: Float[Tensor, "dim attended"]
    ffn_norm: Float[Tensor, " dim"]
    gate_up: Float[Tensor, "twice_ffn_dim dim"]
    down: Float[Tensor, "dim ffn_dim"]
    query_key_value_bias: Float[Tensor, " heads_dim"] | None
    query_norm: Float[Tensor, " head_dim"] | None
    key_norm: Float[Tensor, " head_dim"] | None
    attended_norm: Float[Tensor, " dim"] | None
    """Of what attention adds to the residual stream."""
    ffn_output_norm: Float[Tensor, " dim"] | None
    """Of what the feed-forward layer adds to it."""


@dataclass(frozen=True, eq=False)
class Rotary:
    """A rotary embedding at every position that the model has."""

    cosine: Float[Tensor, "positions head_dim"]
    sine: Float[Tensor, "positions head_dim"]

    def turns(
        self, positions: Int[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows 1 length head_dim"], Float[Tensor, "rows 1 length head_dim"]]:
        """Returns what heads at these positions, and heads with swapped halves, are multiplied with and added up."""
        sine = self.sine[positions].unsqueeze(1)
        first, second = sine.chunk(2, dim=-1)
        return self.cosine[positions].unsqueeze(1), torch.cat((-first, second), dim=-1)


@dataclass(frozen=True, eq=False)
class LlamaParts:
    """All that decoding reads; shares with the model what it can."""

    embeddings: Float[Tensor, "ids dim"]
    blocks: tuple[LlamaBlock, ...]
    norm: Float[Tensor, " dim"]
    head: Float[Tensor, "ids dim"]
    rotary: tuple[Rotary, ...]
    """Of each block."""
    windows: tuple[int | None, ...]
    """How many ids back a block looks, its own among them; all if None."""
    num_heads: int
    num_kv_heads: int
    norm_eps: float
    attention_scale: float
    """By which products of queries and keys are multiplied."""
    embedding_scale: float
    """By which embeddings are multiplied before the first block."""
    activation: str
    """Of the feed-forward layers' gates: ``silu`` or ``gelu_pytorch_tanh``."""
    vision_blocks: frozenset[int] = frozenset()
    """Blocks that change positions of pictures only; stock models have none."""
    vision_norm: Float[Tensor, " dim"] | None = None
    """The final norm of positions of pictures, where it is another."""

    @property
    def max_positions(self) -> int:
        """Ids of the longest text."""
        return len(self.rotary[0].cosine)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.rotary[0].cosine.shape[1]


def llama_parts(model: "PreTrainedModel") -> LlamaParts:
    """Returns the parts of a stock causal language model, or of what ``read_llama`` read.

    Raises:
        ValueError: if the model is of a family, or of a make, that is not decoded here.
    """
    config = model.config
    _check(config)
    is_gemma = config.model_type.startswith("gemma")
    embeddings = model.model.embed_tokens.weight.detach()
    return LlamaParts(
        embeddings=embeddings,
        blocks=tuple(_block(layer, is_gemma) for layer in model.model.layers),
        norm=_norm(model.model.norm, is_gemma),
        head=model.lm_head.weight.detach(),
        rotary=_rotary(model),
        windows=tuple(_window(config, index) for index in range(config.num_hidden_layers)),
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        norm_eps=config.rms_norm_eps,
        attention_scale=(getattr(config, "query_pre_attn_scalar", None) or _head_dim(config)) ** -0.5,
        embedding_scale=config.hidden_size**0.5 if is_gemma else 1.0,
        activation=_activation(config),
    )


def _check(config: Any) -> None:
    """Raises if the model asks for something that decoding does not do."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [one.get("rope_type", "default") for one in (rope, *rope.values()) if isinstance(one, dict)]
    checks = [
        ("model_type", config.model_type, FAMILIES),
        ("activation", _activation(config), _ACTIVATIONS),
        *(("rope_type", kind, _ROTARY) for kind in kinds),
        *((name, getattr(config, name, None), (None, False)) for name in _ABSENT),
    ]
    for name, got, allowed in checks:
        if got not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(f"{name} of the language model must be {wanted}, got {got}")


def _activation(config: Any) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _window(config: Any, index: int) -> int | None:
    """Returns how far a block looks back: in Mistral every block, elsewhere those that the config names."""
    kinds = getattr(config, "layer_types", None)
    is_sliding = config.model_type == "mistral" if kinds is None else kinds[index] == "sliding_attention"
    return config.sliding_window if is_sliding else None


def _rotary(model: Any) -> tuple[Rotary, ...]:
    """Returns the rotary embedding of each block; where blocks have the same, they share it."""
    config, like = model.config, model.model.embed_tokens.weight
    positions = torch.arange(config.max_position_embeddings, device=like.device).unsqueeze(0)
    if config.model_type != "gemma3_text":
        cosine, sine = model.model.rotary_emb(like, positions)
        return (Rotary(cosine[0], sine[0]),) * config.num_hidden_layers
    by_kind = {kind: model.model.rotary_emb(like, positions, kind) for kind in set(config.layer_types)}
    shared = {kind: Rotary(cosine[0], sine[0]) for kind, (cosine, sine) in by_kind.items()}
    return tuple(shared[kind] for kind in config.layer_types)


def _block(layer: Any, is_gemma: bool) -> LlamaBlock:
    attention, ffn = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    biases = [one.bias.detach() for one in projections if getattr(one, "bias", None) is not None]
    # Gemma 3 has norms before and after each part, and calls those before it otherwise.
    has_norms_after = hasattr(layer, "post_feedforward_layernorm")
    ffn_norm = layer.pre_feedforward_layernorm if has_norms_after else layer.post_attention_layernorm
    has_head_norms = hasattr(attention, "q_norm")
    return LlamaBlock(
        attention_norm=_norm(layer.input_layernorm, is_gemma),
        query_key_value=torch.cat([one.weight.detach() for one in projections]),
        output=attention.o_proj.weight.detach(),
        ffn_norm=_norm(ffn_norm, is_gemma),
        gate_up=torch.cat([ffn.gate_proj.weight.detach(), ffn.up_proj.weight.detach()]),
        down=ffn.down_proj.weight.detach(),
        query_key_value_bias=torch.cat(biases) if biases else None,
        query_norm=_norm(attention.q_norm, is_gemma) if has_head_norms else None,
        key_norm=_norm(attention.k_norm, is_gemma) if has_head_norms else None,
        attended_norm=_norm(layer.post_attention_layernorm, is_gemma) if has_norms_after else None,
        ffn_output_norm=_norm(layer.post_feedforward_layernorm, is_gemma) if has_norms_after else None,
    )


def _norm(norm: Any, is_gemma: bool) -> Float[Tensor, " dim"]:
    """Returns the factors of a norm; Gemma's are stored less 1, and applied in float32."""
    return 1 + norm.weight.detach().float() if is_gemma else norm.weight.detach()
