import pytest
import torch
from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.llama_weights import read_language_model
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.assemble import AssembleConfig, assemble


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_and_angles_are_those_of_the_class(dtype, saved_model):
    stock = LlamaForCausalLM.from_pretrained(saved_model, dtype=dtype)
    read = read_language_model(saved_model, "cpu", dtype)
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
            read_language_model(saved_model, "cpu", torch.float32),
        )
    ]
    asked = [Request(prompt=ids, max_text_tokens=7, num_pictures=1, seed=len(ids)) for ids in ([1, 50, 60], [1, 70])]
    first, second = (engine.generate(asked, Decoding()) for engine in engines)
    assert first == second


def test_a_model_of_another_family_is_read_by_its_class_and_draws(exports, text_tokenizer, tmp_path):
    parts = {name: exports / name for name in ("image_tokenizer", "decoder", "vae")}
    image_tokenizer = ImageTokenizer.load(parts["image_tokenizer"])
    vocabulary = Vocabulary(text_tokenizer.num_pieces, image_tokenizer.layout)
    sizes = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(
        **sizes, vocab_size=vocabulary.size, intermediate_size=28, head_dim=10, max_position_embeddings=96
    )
    config.image_tokenizer_hash = image_tokenizer.hash
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    text_tokenizer.save(tmp_path / "qwen", vocabulary)
    assemble(AssembleConfig(**parts, language_model=tmp_path / "qwen", output=tmp_path / "model"))
    (drawing,) = Rebus.load(tmp_path / "model").draw("a cat")
    assert drawing.tokens.ids.shape == (1, 9, 1)
