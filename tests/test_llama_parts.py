import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rebus.model.cached_llama import CachedLlama
from rebus.model.llama_parts import llama_parts

SIZES = {
    "vocab_size": 31,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 53,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5}
STOCK = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama 3": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=LLAMA_3_ROPE)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None, head_dim=12)),
    "mistral, window": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=5)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen2, windows": (Qwen2ForCausalLM, Qwen2Config(**SIZES, use_sliding_window=True, **WINDOWED)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=12)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**SIZES, head_dim=12)),
    "gemma 3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, head_dim=12, query_pre_attn_scalar=20, **WINDOWED),
    ),
}
IN_CPP = {"llama", "llama 3", "mistral", "qwen2", "qwen3"}
ROWS = [[1, 5, 6], [1, 9, 8, 7, 6, 5, 4, 17, 18], [2]]


def build(name):
    """A model in which nothing is at its start, where norms are 1 and biases 0."""
    kind, config = STOCK[name]
    model, generator = kind(config).eval(), torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + 0.3 * noise if parameter.ndim == 1 else 0.15 * noise
    return model


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("name", STOCK)
def test_logits_are_those_of_transformers(name, native):
    model = build(name)
    body = CachedLlama(llama_parts(model), native=native)
    if native and body.native is None:
        assert name not in IN_CPP or CachedLlama(llama_parts(build("llama"))).native is None
        pytest.skip("left to torch")
    read = [list(row) for row in ROWS]
    with torch.inference_mode():
        cache = body.start(ROWS, 30)
        for step in range(12):
            logits = body.logits(cache.last, 2, 29)
            for row, ids in enumerate(read):
                expected = model(torch.tensor([ids])).logits[0, -1, 2:29]
                torch.testing.assert_close(logits[row], expected, rtol=0, atol=1e-5)
                ids.append(3 + (5 * step + 7 * row) % 26)
            cache.read(torch.tensor([[ids[-1]] for ids in read]))
    assert (native and body.native is not None) == (native and name in IN_CPP)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Gemma2ForCausalLM, Gemma2Config(**SIZES), "model_type of the language model must be llama or .*, got gemma2"),
        (LlamaForCausalLM, LlamaConfig(**SIZES, hidden_act="relu"), "activation of .* must be silu or .*, got relu"),
        (LlamaForCausalLM, LlamaConfig(**SIZES, mlp_bias=True), "mlp_bias of .* must be None or False, got True"),
        (
            LlamaForCausalLM,
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}),
            "rope_type of .* must be default or .*, got dynamic",
        ),
    ],
)
def test_what_is_not_decoded_here_is_refused(kind, config, message):
    with pytest.raises(ValueError, match=message):
        llama_parts(kind(config))
