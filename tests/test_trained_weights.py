from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rebus.data.packing import PackedBatch, pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered
from rebus.model.extension import extend
from rebus.model.language_model import DOCUMENT_ATTENTION, Documents, LanguageBatch, language_batch, loss
from rebus.model.trained_weights import FullTraining, LoraTraining, NewRowsTraining
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import SpecialIds, Vocabulary
from rebus.train.config import OptimConfig
from rebus.train.named_state import frozen_hash
from rebus.train.parameter_groups import parameter_groups
from rebus.train.updates import PlainUpdater

VOCABULARY = Vocabulary(53, CodeLayout("sequence", 5, (Stream("code", 17),)), SpecialIds(None, 1, 2, 2))
IDS = torch.tensor([[1, 9, VOCABULARY.user, VOCABULARY.size - 1, 7]])
ONE_DOCUMENT = Documents([5], torch.arange(5).unsqueeze(0))
CHOICES = {"rows": NewRowsTraining(), "lora": LoraTraining(rank=3, targets=("q_proj", "down_proj"))}


def extended(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=53, intermediate_size=20, tie_word_embeddings=tied, **sizes))
    extend(model, VOCABULARY, torch.Generator().manual_seed(0))
    model.set_attn_implementation(DOCUMENT_ATTENTION)
    return model


@pytest.fixture
def batch() -> LanguageBatch:
    ids = VOCABULARY
    picture = [ids.begin_picture, *(ids.code_range(0)[0] + code for code in (3, 16, 0, 5, 9)), ids.end_picture]
    rows = [[ids.bos, 5, 6, *picture, ids.eos], [ids.bos, ids.user, 8, ids.eos, ids.assistant, *picture, 4, ids.eos]]
    rendered = [Rendered(row, [NOT_TRAINED, *row[1:]], [int(one >= 57) for one in row]) for row in rows]
    return language_batch(PackedBatch.cat([pack_row(iter(rendered), 29, ids.pad)]), ids)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tied(request) -> bool:
    return request.param


@pytest.mark.parametrize("kind", CHOICES)
def test_a_model_computes_and_loses_what_it_did_before(kind, tied, batch):
    model = extended(tied).eval()
    before, expected = model(IDS, attention_mask=None, documents=ONE_DOCUMENT).logits, loss(model, batch)[0]
    CHOICES[kind].prepare(model, VOCABULARY, seed=0)
    assert torch.equal(model(IDS, attention_mask=None, documents=ONE_DOCUMENT).logits, before)
    assert torch.equal(loss(model, batch)[0], expected)


@pytest.mark.parametrize("kind", CHOICES)
def test_gradients_of_new_rows_are_those_of_full_training_and_nothing_else_has_any_but_adapters(kind, tied, batch):
    whole, model = extended(tied), extended(tied)
    loss(whole, batch)[0].backward()
    CHOICES[kind].prepare(model, VOCABULARY, seed=0)
    loss(model, batch)[0].backward()
    got = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    trainable = {name for name, one in model.named_parameters() if one.requires_grad}
    rows = {name for name in trainable if "trainable_tokens_delta" in name}
    assert set(got) == trainable and len(rows) == (1 if tied else 2)
    adapters = {tuple(name.split(".")[2:5]) for name in trainable - rows}
    layers = [(str(index), *layer) for index in range(2) for layer in (("self_attn", "q_proj"), ("mlp", "down_proj"))]
    assert adapters == (set() if kind == "rows" else set(layers))
    full = {"embed_tokens": whole.model.embed_tokens.weight.grad, "lm_head": whole.lm_head.weight.grad}
    for name in rows:
        expected = full["lm_head" if "lm_head" in name else "embed_tokens"][VOCABULARY.num_text :]
        assert expected.any()
        torch.testing.assert_close(got[name], expected, rtol=1e-5, atol=1e-7)


def trained(model, choice, batch, steps=4):
    """Some steps of training; the learning rate is high, so that what moves is seen to move."""
    prepared = choice.prepare(model, VOCABULARY, seed=0)
    updater = PlainUpdater(model, lambda one: loss(model, one), OptimConfig(lr=0.05))
    losses = [updater.update([batch], 0.05)["loss"].item() for _ in range(steps)]
    return prepared, losses


@pytest.mark.parametrize("kind", CHOICES)
def test_training_learns_and_changes_what_it_should_alone(kind, tied, batch):
    base = extended(tied)
    prepared, losses = trained(deepcopy(base), CHOICES[kind], batch)
    assert losses[-1] < 0.9 * losses[0]
    after = prepared.stock()
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    changed = {name for name, one in after.state_dict().items() if not torch.equal(one, base.state_dict()[name])}
    adapted = {name for name in base.state_dict() if "q_proj" in name or "down_proj" in name}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"} | (adapted if kind == "lora" else set())
    for one, other in ((after.model.embed_tokens, base.model.embed_tokens), (after.lm_head, base.lm_head)):
        same = (one.weight == other.weight).all(dim=1)
        assert same[: VOCABULARY.num_text].all() and not same[VOCABULARY.num_text :].all()


@pytest.mark.parametrize("kind", CHOICES)
def test_the_merged_model_is_a_stock_one_and_reproduces_the_logits(kind, tied, batch, tmp_path: Path):
    prepared, _ = trained(extended(tied), CHOICES[kind], batch)
    model = prepared.model.eval()
    logits = model(IDS, attention_mask=None, documents=ONE_DOCUMENT).logits
    stock = prepared.stock()
    stock.set_attn_implementation("sdpa")
    stock.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is LlamaForCausalLM
    assert torch.equal(again(IDS).logits, stock.eval()(IDS).logits)
    torch.testing.assert_close(again(IDS).logits, logits, rtol=1e-4, atol=1e-5)
    assert any(one.requires_grad for one in model.parameters()), "what trains goes on training"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's, on loading
@pytest.mark.parametrize("kind", CHOICES)
def test_the_adapter_alone_reproduces_the_logits_on_a_base_of_as_many_rows(kind, tied, batch, tmp_path: Path):
    base = extended(tied)
    for matrix in (base.model.embed_tokens.weight, base.lm_head.weight):
        matrix.data[VOCABULARY.num_text :] = 0  # as another program would extend it
    prepared, _ = trained(extended(tied), CHOICES[kind], batch)
    prepared.save_adapter(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert size < 0.6 * sum(4 * one.numel() for one in base.parameters())
    read = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    options = {"attention_mask": None, "documents": ONE_DOCUMENT}
    expected = prepared.model.eval()(IDS, **options).logits
    torch.testing.assert_close(read.get_base_model()(IDS, **options).logits, expected, rtol=1e-5, atol=1e-6)


def test_full_training_is_the_model_itself_without_an_adapter(tmp_path):
    model = extended(True)
    prepared = FullTraining().prepare(model, VOCABULARY, seed=0)
    assert prepared.model is prepared.stock() is model and all(one.requires_grad for one in model.parameters())
    prepared.save_adapter(tmp_path)
    assert frozen_hash(prepared.model) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", CHOICES)
def test_what_is_frozen_has_a_hash_that_training_keeps(kind, batch):
    other = extended(True)
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    prepared = [CHOICES[kind].prepare(model, VOCABULARY, seed=0) for model in (extended(True), other)]
    hashes = [frozen_hash(one.model) for one in prepared]
    assert hashes[0] != hashes[1]
    assert frozen_hash(trained(extended(True), CHOICES[kind], batch)[0].model) == hashes[0]


def test_rows_do_not_decay_and_adapters_do(tied):
    model = CHOICES["lora"].prepare(extended(tied), VOCABULARY, seed=0).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimConfig(lr=1e-3, weight_decay=0.1))
    decays = {names[id(one)]: group["weight_decay"] > 0 for group in groups for one in group["params"]}
    assert {name for name, decaying in decays.items() if not decaying} == {name for name in decays if "tokens" in name}
    assert sum(not decaying for decaying in decays.values()) == (1 if tied else 2)


def test_the_seed_alone_decides_the_adapters():
    drawn = []
    for seed, other in ((0, 5), (0, 6), (1, 5)):
        torch.manual_seed(other)
        model = LoraTraining(rank=2).prepare(extended(True), VOCABULARY, seed=seed).model
        drawn.append(next(one.detach() for name, one in model.named_parameters() if "lora_A" in name))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be at least 1 and alpha positive, got 0 and 32.0"),
        ({"alpha": 0.0}, "rank must be at least 1 and alpha positive, got 16 and 0.0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"targets": ("lm_head",)}, "targets must be some of q_proj"),
        ({"targets": ()}, "targets must be some of q_proj"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        replace(LoraTraining(), **change)
