from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.data.loading import PackedLoader
from rebus.data.packing import PackedBatch
from rebus.data.rendering import render
from rebus.data.samples import Message, Picture, Sample, pictures, with_tokens
from rebus.tokenizers.tokens import Tokens

LENGTH, SEED = 97, 5


def make_sample(rng):
    pixels = np.frombuffer(rng.randbytes(2 * 5 * 3), np.uint8).reshape(2, 5, 3)
    parts = [Picture(pixels=pixels), rng.choice(["a red cat", "two dogs", ""])]
    rng.shuffle(parts)
    if rng.random() < 0.3:
        return Sample((Message("user", ("what is there",)), Message("assistant", tuple(parts))))
    return Sample((Message("document", tuple(parts[: rng.randint(1, 2)])),))


class Encoder:
    """Stands in for an image tokenizer: the codes are the first bytes of a picture."""

    def __init__(self, layout):
        self.layout = layout
        self.num_calls = 0

    def __call__(self, images):
        assert images.shape[1:] == (3, 2, 5) and images.dtype == torch.uint8
        self.num_calls += 1
        first = images.flatten(1)[:, :12].to(torch.int64).reshape(-1, 6, 2)
        return Tokens(first % torch.tensor([7, 11]), torch.full((len(images),), 6), self.layout)


@pytest.fixture(scope="module")
def loader(text_tokenizer, vocabulary):
    def build(**options):
        options = {"make_sample": make_sample, "encode": Encoder(vocabulary.layout), "seed": SEED, **options}
        shape = {"rows": 6, "length": LENGTH}
        return PackedLoader(text_tokenizer=text_tokenizer, vocabulary=vocabulary, **{**shape, **options})

    return build


def equal(one, other):
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(PackedBatch))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_interleave_to_the_batch_of_one_process(loader, world):
    whole = loader().batch(7)
    for rank in range(world):
        part = loader().batch(7, rank, world)
        mine = PackedBatch(**{field.name: getattr(whole, field.name)[rank::world] for field in fields(PackedBatch)})
        assert equal(part, mine)


@settings(max_examples=5)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=3, unique=True))
def test_a_batch_depends_on_seed_and_step_alone(loader, steps):
    used = loader(rows=2)
    for step in [*steps, steps[0]]:
        assert equal(used.batch(step), loader(rows=2).batch(step))
    assert not equal(used.batch(steps[0]), used.batch(steps[0] + 1))
    assert not equal(used.batch(steps[0]), loader(rows=2, seed=SEED + 1).batch(steps[0]))


def test_every_document_is_the_sample_of_its_row_with_the_codes_of_its_own_pictures(loader, text_tokenizer, vocabulary):
    batch = loader().batch(3)
    encode = Encoder(vocabulary.layout)
    for row in range(6):
        rng = Random(f"{SEED}/3/{row}")
        for number in range(int(batch.documents[row].max()) + 1):
            sample = make_sample(rng)
            rows = [encode(torch.tensor(p.pixels).permute(2, 0, 1)[None]) for p in pictures(sample)]
            rendered = render(with_tokens(sample, rows), text_tokenizer, vocabulary)
            here = batch.documents[row] == number
            assert batch.ids[row][here].tolist() == rendered.ids
            assert batch.targets[row][here].tolist() == rendered.targets
            assert batch.modality[row][here].tolist() == rendered.modality


def test_all_pictures_of_a_batch_are_encoded_in_one_call(loader, vocabulary):
    encode = Encoder(vocabulary.layout)
    batch = loader(encode=encode).batch(0)
    assert (batch.modality == 1).sum() > vocabulary.num_codes and encode.num_calls == 1


def test_pictures_with_codes_and_texts_are_not_encoded(loader, vocabulary):
    encode = Encoder(vocabulary.layout)
    texts = loader(make_sample=lambda rng: Sample((Message("document", ("a cat",)),)), encode=encode).batch(0)
    assert texts.modality.sum() == 0
    stored = Tokens(torch.ones(1, 6, 2, dtype=torch.int64), torch.tensor([6]), vocabulary.layout)
    document = Sample((Message("document", (Picture(tokens=stored),)),))
    batch = loader(make_sample=lambda rng: document, encode=encode).batch(0)
    assert encode.num_calls == 0
    codes = vocabulary.flatten(stored)
    assert batch.ids[batch.modality == 1].reshape(-1, 12).tolist() == [codes] * int((batch.modality == 1).sum() // 12)


def test_refuses_unequal_shares_long_samples_and_other_codes(loader, vocabulary):
    for rank, world in ((0, 4), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"got 6 rows, rank {rank} of {world}"):
            loader().batch(0, rank, world)
    with pytest.raises(ValueError, match="a document must have at most 13 ids"):
        loader(length=13).batch(0)
    other = Encoder(replace(vocabulary.layout, grid=(3, 2)))
    with pytest.raises(ValueError, match="row must be one picture of"):
        loader(encode=other).batch(0)
