import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

from rebus.model.engine import Engine
from rebus.model.llama_weights import read_llama
from rebus.model.sampling import Sampling
from rebus.model.saved import SavedModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_and_angles_are_those_of_the_class(dtype, saved_model):
    stock = LlamaForCausalLM.from_pretrained(saved_model, dtype=dtype)
    read = read_llama(saved_model, "cpu", dtype)
    assert torch.equal(read.model.layers[1].mlp.down_proj.weight, stock.model.layers[1].mlp.down_proj.weight)
    assert read.lm_head.weight is read.model.embed_tokens.weight and read.lm_head.weight.dtype == dtype
    positions = torch.arange(96).unsqueeze(0)
    for one, other in zip(
        read.model.rotary_emb(stock.lm_head.weight, positions),
        stock.model.rotary_emb(stock.lm_head.weight, positions),
        strict=True,
    ):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_engine_continues_alike(saved_model):
    vocabulary = SavedModel.open(saved_model).vocabulary
    engines = [
        Engine(model, vocabulary)
        for model in (
            LlamaForCausalLM.from_pretrained(saved_model, dtype=torch.float32),
            read_llama(saved_model, "cpu", torch.float32),
        )
    ]
    first, second = (
        engine.generate(
            [[1, 50, 60], [1, 70]], text=Sampling(), picture=Sampling(), max_text_tokens=7, num_pictures=1, seeds=[1, 2]
        )
        for engine in engines
    )
    assert first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type of the language model must be llama, got qwen2"),
        ({"attention_bias": True}, "attention_bias of the language model must be False, got True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type of the language model must be default, got yarn"),
    ],
)
def test_what_is_not_read_here_is_refused(change, message, saved_model, tmp_path):
    shutil.copy(saved_model / "config.json", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        read_llama(tmp_path, "cpu", torch.float32)
