import copy

import pytest
import torch

from rebus.data.packing import pack_row
from rebus.data.rendering import render
from rebus.data.samples import Message, Picture, Sample
from rebus.model.kept_drawing import keeping_loss
from rebus.model.language_model import LanguageModelConfig, language_batch, loss
from rebus.tokenizers.tokens import Tokens

CONFIG = LanguageModelConfig(dim=36, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=53, max_positions=128)


@pytest.fixture
def batch(text_tokenizer, vocabulary):
    codes = torch.arange(2 * vocabulary.num_codes).reshape(2, -1, len(vocabulary.layout.streams)) % 5
    drawn, shown = (
        Picture(tokens=Tokens(row.unsqueeze(0), torch.tensor([len(row)]), vocabulary.layout)) for row in codes
    )
    samples = [
        Sample((Message("user", ("draw a dog",)), Message("assistant", (drawn,)))),
        Sample((Message("user", (shown,)),), (("how many", "two"), ("what is there", "a cat"))),
    ]
    rendered = [render(sample, text_tokenizer, vocabulary) for sample in samples]
    return language_batch(pack_row(iter(rendered), 100, vocabulary.pad), vocabulary)


@pytest.fixture
def model(vocabulary):
    model = CONFIG.build(vocabulary, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.data *= 5 if parameter.ndim > 1 else 1  # far from uniform predictions
    return model


def test_the_loss_is_that_of_text_and_the_distance_of_whole_distributions(model, batch, vocabulary):
    teacher = CONFIG.build(vocabulary, torch.Generator().manual_seed(1))
    total, metrics = keeping_loss(model, teacher, batch)
    assert metrics["text_loss"].item() == pytest.approx(loss(model, batch)[1]["text_loss"].item(), abs=1e-5)
    distances = []
    for head in batch.heads[1:]:
        for place in head.places:
            seen = batch.packed.ids[:, : place + 1]  # the drawing is the first document of the only row
            mine, other = (one(seen).logits[0, -1, head.start : head.stop].softmax(-1) for one in (model, teacher))
            distances.append((other * (other / mine).log()).sum())
    expected = torch.stack(distances).mean()
    assert metrics["code_distance"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert total.item() == pytest.approx((metrics["text_loss"] + expected).item(), rel=1e-4)


def test_a_model_learns_to_answer_and_goes_on_drawing_as_it_did(model, batch):
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = loss(model, batch)[1]
    for _ in range(60):
        optimizer.zero_grad()
        total, metrics = keeping_loss(model, teacher, batch)
        total.backward()
        optimizer.step()
    assert metrics["text_loss"] < 0.1 < first["text_loss"] and metrics["code_distance"] < 0.1
    assert loss(model, batch)[1]["code_loss"].item() == pytest.approx(first["code_loss"].item(), rel=0.1)
