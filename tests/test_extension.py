import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.extension import extend
from rebus.model.language_model import DOCUMENT_ATTENTION, Documents
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import SpecialIds, Vocabulary

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}
NUM_TEXT = 97
LAYOUT = CodeLayout("sequence", 3, (Stream("code", 31),))


def stock(family="llama", num_rows=NUM_TEXT, tied=True):
    config, kind = FAMILIES[family]
    torch.manual_seed(0)
    return kind(config(vocab_size=num_rows, intermediate_size=20, tie_word_embeddings=tied, **SIZES)).eval()


def vocabulary_of(num_codes=31):
    layout = CodeLayout("sequence", 3, (Stream("code", num_codes),))
    return Vocabulary(NUM_TEXT, layout, SpecialIds(None, 90, 91, 91, (92,)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_predicted_as_before_bit_for_bit(family, tied):
    model, vocabulary = stock(family, tied=tied), vocabulary_of()
    ids = torch.arange(0, NUM_TEXT, 5).unsqueeze(0)
    with torch.no_grad():
        before, states = model(ids).logits, model.model(ids).last_hidden_state
        extend(model, vocabulary, torch.Generator().manual_seed(0))
        after = model(ids).logits
        assert torch.equal(model.model(ids).last_hidden_state, states)
    assert after.shape[-1] == model.config.vocab_size == vocabulary.size
    assert torch.equal(after[..., :NUM_TEXT], before)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (90, 91, 91)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_lie_in_the_hull_of_the_old_and_are_spread_like_them(tied):
    model, vocabulary = stock(tied=tied), vocabulary_of(num_codes=6000)
    spread = torch.linspace(0.5, 3, 12)
    for matrix in (model.model.embed_tokens.weight, model.lm_head.weight):
        matrix.data = torch.randn(NUM_TEXT, 12) * spread + 2
    if tied:
        model.tie_weights()
    old = [model.model.embed_tokens.weight.detach().clone(), model.lm_head.weight.detach().clone()]
    extend(model, vocabulary, torch.Generator().manual_seed(0))
    directions = torch.randn(12, 500)
    for matrix, rows in zip((model.model.embed_tokens.weight, model.lm_head.weight), old, strict=True):
        new = matrix.detach()[NUM_TEXT:]
        assert torch.equal(matrix.detach()[:NUM_TEXT], rows)
        assert ((new @ directions).amax(dim=0) <= (rows @ directions).amax(dim=0) + 1e-5).all()
        torch.testing.assert_close(new.mean(dim=0), rows.mean(dim=0), rtol=0, atol=0.1)
        torch.testing.assert_close(new.T.cov(), rows.T.cov() * 2 / 17, rtol=0.15, atol=0.05)
        assert len(new.unique(dim=0)) == len(new)


@pytest.mark.parametrize("num_codes", [3, 31])
def test_rows_beyond_the_text_pieces_make_room_for_control_tokens_and_codes(num_codes):
    """As Qwen2.5 has them; whether there are in the end more rows than before, or fewer."""
    padded, exact, vocabulary = stock(num_rows=NUM_TEXT + 23), stock(), vocabulary_of(num_codes)
    padded.load_state_dict({**exact.state_dict(), **embeddings(padded, exact)})
    for model in (padded, exact):
        extend(model, vocabulary, torch.Generator().manual_seed(0))
    assert padded.config.vocab_size == vocabulary.size == NUM_TEXT + 4 + num_codes
    assert torch.equal(padded.lm_head.weight, exact.lm_head.weight)


def embeddings(padded, exact):
    rows = padded.lm_head.weight.detach().clone() + 9
    rows[:NUM_TEXT] = exact.lm_head.weight.detach()
    return {"lm_head.weight": rows, "model.embed_tokens.weight": rows}


def test_the_same_seed_gives_the_same_rows_in_every_number_format():
    rows = []
    for dtype, seed in ((torch.float32, 0), (torch.float32, 0), (torch.float32, 1), (torch.bfloat16, 0)):
        model = stock()
        model.lm_head.weight.data = model.lm_head.weight.data.bfloat16().float()
        model.tie_weights()
        extend(model.to(dtype), vocabulary_of(), torch.Generator().manual_seed(seed))
        rows.append(model.lm_head.weight.detach())
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert torch.equal(rows[0].bfloat16(), rows[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_extended_model_is_saved_as_a_stock_one_and_draws(family, tmp_path):
    model, vocabulary = stock(family, tied=False), vocabulary_of()
    extend(model, vocabulary, torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, vocabulary.size - 1]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    asked = Request(prompt=[90, 5], max_text_tokens=0, num_pictures=1, start_picture=True, seed=0)
    (row,) = Engine(again, vocabulary).generate([asked], Decoding())
    assert vocabulary.unflatten(row.ids[1:-1]).lengths.tolist() == [3]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_attends_within_documents(family):
    """The attention of training is that of the stock class on each document by itself."""
    model = stock(family)
    ids, lengths = torch.arange(11).unsqueeze(0), (4, 7)
    apart = [model.model(part).last_hidden_state[0] for part in ids.split(lengths, dim=1)]
    model.set_attn_implementation(DOCUMENT_ATTENTION)
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    options = {"attention_mask": None, "documents": Documents(lengths, positions), "use_cache": False}
    together = model.model(ids, position_ids=positions, **options).last_hidden_state[0]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="model must have a row for each of the 97 text pieces, got 96"):
        extend(stock(num_rows=96), vocabulary_of(), torch.Generator())
    other = GPT2LMHeadModel(GPT2Config(vocab_size=NUM_TEXT, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="model must be one of llama, .*, got gpt2"):
        extend(other, vocabulary_of(), torch.Generator())
