import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from rebus.data.packing import PackedBatch, pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered, render
from rebus.data.samples import Message, Picture, Sample
from rebus.model.language_model import (
    DOCUMENT_ATTENTION,
    LanguageModelConfig,
    language_batch,
    loss,
    place_codes,
)
from rebus.tokenizers.tokens import Tokens

CONFIG = LanguageModelConfig(dim=36, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=53, max_positions=128)


@pytest.fixture
def model(vocabulary):
    model = CONFIG.build(vocabulary, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.data *= 5 if parameter.ndim > 1 else 1  # far from uniform predictions
    return model


@pytest.fixture
def picture(vocabulary) -> Callable[[], Picture]:
    """Makes another picture each time."""
    rng = random.Random(0)
    sizes = [stream.size for stream in vocabulary.layout.streams]

    def make() -> Picture:
        codes = [[[rng.randrange(size) for size in sizes] for _ in range(vocabulary.layout.num_positions)]]
        return Picture(tokens=Tokens(torch.tensor(codes), torch.tensor([len(codes[0])]), vocabulary.layout))

    return make


@pytest.fixture
def documents(picture, text_tokenizer, vocabulary) -> list[Rendered]:
    """Documents and chats of unequal length."""
    samples = [
        Sample((Message("document", ("a cat on the left", picture())),)),
        Sample((Message("document", (picture(),)),)),
        Sample(
            (Message("user", ("draw a dog",)), Message("assistant", (picture(), "two what"))),
        ),
        Sample((Message("document", (picture(), "red", picture(), "three")),)),
        Sample(
            (Message("user", (picture(), "what is there")), Message("assistant", ("banana",))),
        ),
    ]
    return [render(sample, text_tokenizer, vocabulary) for sample in samples]


def packed(documents: list[Rendered], vocabulary, length: int = 89) -> PackedBatch:
    rows = [documents[:2], documents[2:4], documents[4:]]
    batch = PackedBatch.cat([pack_row(iter(row), length, vocabulary.pad) for row in rows])
    assert (batch.documents.amax(dim=1) + 1).tolist() == [len(row) for row in rows]  # none was lost
    return batch


def expected_losses(model, documents, vocabulary) -> tuple[list[float], list[float]]:
    """Losses of text and of codes, document by document, from the logits of a plain ``transformers`` pass."""
    parts = [(0, vocabulary.control_range[1]), vocabulary.code_range(0), vocabulary.code_range(1)]
    text, codes = [], []
    for document in documents:
        logits = model(torch.tensor([document.ids])).logits[0]
        for position, target in enumerate(document.targets[1:]):
            if target != NOT_TRAINED:
                start, stop = next(part for part in parts if part[0] <= target < part[1])
                one = F.cross_entropy(logits[position, start:stop], torch.tensor(target - start))
                (text if start == 0 else codes).append(one)
    return text, codes


@pytest.mark.parametrize("attention", ["sdpa", DOCUMENT_ATTENTION])
def test_packed_loss_is_that_of_the_documents_one_by_one(model, documents, vocabulary, attention):
    text, codes = expected_losses(model, documents, vocabulary)
    model.set_attn_implementation(attention)
    total, metrics = loss(model, language_batch(packed(documents, vocabulary), vocabulary))
    assert total.item() == pytest.approx(sum(text + codes).item() / len(text + codes), abs=1e-5)
    assert metrics["text_loss"].item() == pytest.approx(sum(text).item() / len(text), abs=1e-5)
    assert metrics["code_loss"].item() == pytest.approx(sum(codes).item() / len(codes), abs=1e-5)
    assert 0 < metrics["code_accuracy"] < 1


@pytest.mark.parametrize("attention", ["sdpa", DOCUMENT_ATTENTION])
def test_questions_behind_one_picture_have_the_losses_of_a_chat_each(
    model, documents, picture, text_tokenizer, vocabulary, attention
):
    asked = (("what is there", "a cat"), ("how many", "two"), ("red", "three banana"))
    shared = picture()
    chats = [Sample((Message("user", (shared, one)), Message("assistant", (other,)))) for one, other in asked]
    apart = [render(chat, text_tokenizer, vocabulary) for chat in chats]
    together = render(Sample((Message("user", (shared,)),), asked), text_tokenizer, vocabulary)
    before = documents[2]
    text, _ = expected_losses(model, [before, *apart, before], vocabulary)
    model.set_attn_implementation(attention)
    batch = language_batch(pack_row(iter([before, together, before]), 120, vocabulary.pad), vocabulary)
    assert batch.packed.documents.max() == 2
    assert loss(model, batch)[1]["text_loss"].item() == pytest.approx(sum(text).item() / len(text), abs=1e-5)


def test_codes_start_as_alike_as_their_features(vocabulary):
    generator = torch.Generator().manual_seed(0)
    model = replace(CONFIG, dim=384, num_layers=1).build(vocabulary, generator)
    before, (start, stop) = model.lm_head.weight.detach().clone(), vocabulary.code_range(0)
    features = torch.randn(stop - start, 64, generator=generator)
    features[1] = features[0] + 0.1
    place_codes(model, vocabulary, features, generator)
    rows = model.lm_head.weight.detach()
    assert torch.equal(rows[:start], before[:start]) and torch.equal(rows[stop:], before[stop:])
    assert 0.9 < rows[start:stop].std() / before.std() < 1.1
    alike = torch.corrcoef(rows[start : start + 3])
    assert alike[0, 1] > 0.9 and alike[0, 2].abs() < 0.5


def test_document_attention_has_the_gradients_of_the_masked_one(model, documents, vocabulary):
    batch = language_batch(packed(documents, vocabulary), vocabulary)
    gradients = []
    for attention in ("sdpa", DOCUMENT_ATTENTION):
        model.set_attn_implementation(attention)
        gradients.append(torch.autograd.grad(loss(model, batch)[0], list(model.parameters())))
    for stock, own in zip(*gradients, strict=True):
        torch.testing.assert_close(own, stock, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # by new versions, for a new name
def test_recomputed_activations_give_the_same_loss_and_gradients(model, documents, vocabulary):
    model.set_attn_implementation(DOCUMENT_ATTENTION)
    batch, parameters = language_batch(packed(documents, vocabulary), vocabulary), list(model.parameters())
    block_calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: block_calls.append(1))
    stored, _ = loss(model.train(), batch)
    expected = torch.autograd.grad(stored, parameters)
    assert len(block_calls) == 1
    model.gradient_checkpointing_enable()
    recomputed, _ = loss(model, batch)
    gradients = torch.autograd.grad(recomputed, parameters)
    assert len(block_calls) == 3  # once more in the backward pass
    assert torch.equal(recomputed, stored)
    assert all(torch.equal(*pair) for pair in zip(gradients, expected, strict=True))


def test_gradients_of_shares_average_to_those_of_the_whole(model, documents, vocabulary):
    rows = packed([*documents, documents[0]], vocabulary)
    whole = language_batch(rows, vocabulary)
    shares = []
    for rank in range(3):
        columns = (rows.ids, rows.targets, rows.modality, rows.documents, rows.positions)
        share = language_batch(PackedBatch(*(column[rank::3] for column in columns)), vocabulary)
        share = replace(share, num_targets=whole.num_targets / 3)  # as an all-reduce gives
        shares.append(torch.autograd.grad(loss(model, share)[0], list(model.parameters())))
    expected = torch.autograd.grad(loss(model, whole)[0], list(model.parameters()))
    for mean, one in zip([sum(parts) / 3 for parts in zip(*shares, strict=True)], expected, strict=True):
        torch.testing.assert_close(mean, one, rtol=1e-4, atol=1e-6)


def test_every_target_belongs_to_one_part_of_the_head(documents, vocabulary):
    rows = packed(documents, vocabulary)
    batch = language_batch(rows, vocabulary)
    assert sum(batch.document_lengths) == rows.ids.numel()
    assert batch.num_targets.sum() == (rows.targets != NOT_TRAINED).sum()
    following = rows.ids.flatten()
    for head in batch.heads:
        assert torch.equal(following[head.places + 1], head.ids + head.start)


def test_code_likelihoods_sum_to_one_over_their_stream(model, documents, vocabulary):
    """The loss of a code does not change with the rows of text or of the other stream."""
    batch = language_batch(packed(documents, vocabulary), vocabulary)
    _, before = loss(model, batch)
    start, stop = vocabulary.code_range(0)
    output = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.weight = output  # untied, so that only the head changes
    output.data[: vocabulary.num_text] += 1
    _, after = loss(model, batch)
    assert after["code_loss"] == before["code_loss"] and after["text_loss"] != before["text_loss"]
    output.data[start:stop] += torch.randn(stop - start, output.shape[1], generator=torch.Generator().manual_seed(0))
    assert loss(model, batch)[1]["code_loss"] != before["code_loss"]


def test_fresh_weights(vocabulary):
    build = LanguageModelConfig(dim=96, num_layers=1, num_heads=4, num_kv_heads=4, ffn_dim=128).build
    one, same, other = (build(vocabulary, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    for parameter in one.parameters():
        if parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
    assert one.config.vocab_size == vocabulary.size and one.config.eos_token_id == vocabulary.eos


def test_mini_size():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=3000, **sizes(LanguageModelConfig())))
    assert 15e6 < sum(parameter.numel() for parameter in model.parameters()) < 17e6


def sizes(config: LanguageModelConfig) -> dict[str, int | bool]:
    names = {"dim": "hidden_size", "num_layers": "num_hidden_layers", "ffn_dim": "intermediate_size"}
    return {name: getattr(config, own) for own, name in names.items()} | {
        "num_attention_heads": config.num_heads,
        "tie_word_embeddings": True,
    }


@pytest.mark.parametrize("values", [{"dim": 40}, {"dim": 42}, {"num_kv_heads": 4}])
def test_heads_must_divide(values):
    with pytest.raises(
        ValueError, match="dim must be an even multiple of num_heads, and that one of num_kv_heads, got"
    ):
        LanguageModelConfig(**values)
