"""The order and the packing of samples from shards: each once, in an order that any number of ranks goes on with."""

import json
import random
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.data import shard_order
from rebus.data.packing import PackedBatch
from rebus.data.prefetch import Prefetched
from rebus.data.rendering import Rendered
from rebus.data.shard_loading import ShardLoader
from rebus.data.shard_order import ShardOrder, permuted, shuffle_keys
from rebus.data.shards import Shards, ShardsInfo, shard_path, write_manifest, write_shard

LENGTH = 120
NUM_SAMPLES = {"long": 150, "short": 70}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Lets tests of a few hundred samples cross from one block of the order to the next."""
    monkeypatch.setattr(shard_order, "_BLOCK", 128)


def write(folder, vocabulary, num_samples, longest, seed):
    """Writes shards of samples whose first text ids say their number."""
    folder.mkdir()
    ShardsInfo(
        image_tokenizer="images",
        text_tokenizer="texts",
        vocabulary=vocabulary.to_dict(),
        source="made up",
        schema="captions",
        records_per_shard=40,
        max_ids=longest,
    ).write(folder)
    rng, samples = random.Random(seed), []
    for number in range(num_samples):
        ids = [vocabulary.bos, 10 + number % 100, 10 + number // 100]
        ids += [rng.randrange(vocabulary.size) for _ in range(rng.randint(1, longest - 3))]
        samples.append(Rendered(ids, [token if rng.random() < 0.5 else -100 for token in ids], []))
    shards = [samples[start : start + 40] for start in range(0, num_samples, 40)]
    counts = [write_shard(shard_path(folder, number), shard, {}) for number, shard in enumerate(shards)]
    write_manifest(folder, counts)
    return samples


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vocabulary):
    root = tmp_path_factory.mktemp("shards")
    samples = [
        write(root / name, vocabulary, number, 30 if name == "short" else 60, name)
        for name, number in NUM_SAMPLES.items()
    ]
    return [Shards(root / name) for name in NUM_SAMPLES], samples


@pytest.fixture(scope="module")
def loader(folders):
    def build(weights=(0.7, 0.3), rows=4, seed=5, length=LENGTH):
        return ShardLoader(folders[0][: len(weights)], weights, rows=rows, length=length, seed=seed)

    return build


def equal(one, other):
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(PackedBatch))


def documents(batch):
    """Returns the ids and targets of all documents of a batch."""
    found = []
    for row in range(len(batch.ids)):
        for number in range(int(batch.documents[row].max()) + 1):
            here = batch.documents[row] == number
            assert batch.positions[row][here].tolist() == list(range(int(here.sum())))
            found.append((batch.ids[row][here].tolist(), batch.targets[row][here].tolist()))
    return found


def numbers(batch):
    return [ids[1] - 10 + 100 * (ids[2] - 10) for ids, _ in documents(batch)]


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 9))
def test_a_shuffle_is_a_permutation(size, seed, epoch):
    keys = shuffle_keys(seed, 0, np.arange(epoch, epoch + 2))
    found = [permuted(np.arange(size), size, keys[index : index + 1]) for index in range(2)]
    assert all(sorted(one.tolist()) == list(range(size)) for one in found)
    both = permuted(np.tile(np.arange(size), 2), size, np.repeat(keys, size))
    assert both.tolist() == [place for one in found for place in one.tolist()]


def test_shuffles_are_even():
    counts, num = np.zeros((7, 7)), 1000
    for seed in range(num):
        counts[np.arange(7), permuted(np.arange(7), 7, shuffle_keys(seed, 1, np.array([2])))] += 1
    # Chi-squared with 36 degrees of freedom, as rows and columns must sum to the number; its 99.9 % point is 68.
    assert ((counts - num / 7) ** 2 / (num / 7)).sum() < 68


def test_the_order_is_written_down():
    order = ShardOrder([5, 3], [1.0, 1.0], seed=0)
    golden = [(1, 1), (0, 3), (1, 2), (1, 0), (0, 1), (0, 0), (0, 2), (0, 4), (1, 1), (1, 2), (1, 0), (0, 0)]
    assert [order.take() for _ in golden] == golden


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3), (1.0, 3.0)])
def test_every_sample_comes_once_before_any_twice_and_as_often_as_its_weight_says(weights):
    order = ShardOrder([31, 17][: len(weights)], weights, seed=3)
    places = [order.take() for _ in range(2000)]
    for folder, size in enumerate([31, 17][: len(weights)]):
        own = [sample for number, sample in places if number == folder]
        for start in range(0, len(own) - size, size):
            assert sorted(own[start : start + size]) == list(range(size))
        assert own[:size] != own[size : 2 * size]
        assert abs(len(own) / 2000 - weights[folder] / sum(weights)) < 0.03


def test_an_order_goes_on_across_blocks_from_what_it_says():
    straight = ShardOrder([100, 7], [2.0, 1.0], seed=1)
    places = [straight.take() for _ in range(400)]
    assert sum(straight.num_read()) == straight.num_taken == 400
    for taken in (0, 1, 127, 128, 129, 300):
        order = ShardOrder([100, 7], [2.0, 1.0], seed=1)
        for _ in range(taken):
            order.take()
        resumed = ShardOrder([100, 7], [2.0, 1.0], seed=1)
        resumed.load_state(json.loads(json.dumps(order.state())))
        assert [resumed.take() for _ in range(100)] == places[taken : taken + 100]


def test_the_order_does_not_depend_on_the_size_of_a_block(monkeypatch):
    orders = []
    for size in (50, 128):
        monkeypatch.setattr(shard_order, "_BLOCK", size)
        order = ShardOrder([100, 7], [2.0, 1.0], seed=1)
        orders.append([order.take() for _ in range(300)])
    assert orders[0] == orders[1]


def test_rows_hold_whole_samples_with_their_targets_and_little_padding(folders, loader, vocabulary):
    (long, short), samples = folders
    by_ids = {tuple(one.ids): one.targets for both in samples for one in both}
    own, fill = loader(), []
    for step in range(20):
        batch = own.batch(step)
        assert batch.ids.shape == (4, LENGTH) and batch.ids.dtype == torch.int64
        for ids, targets in documents(batch):
            assert by_ids[tuple(ids)] == targets
        padding = batch.documents < 0
        assert (batch.ids[padding] == vocabulary.pad).all() and (batch.targets[padding] == -100).all()
        assert not batch.positions[padding].any() and not batch.modality[padding].any()
        assert torch.equal(batch.modality == 1, batch.ids >= vocabulary.control_range[1])
        fill.append(1 - padding.float().mean().item())
    assert sum(fill) / len(fill) > 0.97
    assert long.num_ids == sum(len(one.ids) for one in samples[0]) and short.lengths.max() <= 30


@pytest.mark.parametrize("worlds", [(1,), (2,), (2, 1, 2), (4, 2, 1, 4)])
def test_every_sample_is_seen_once_though_the_number_of_ranks_changes(loader, worlds):
    straight, seen, alone = loader(weights=(1.0,)), Counter(), []
    state, step = straight.state(0), 0
    for phase in range(12):
        world = worlds[phase % len(worlds)]
        ranks = [loader(weights=(1.0,)) for _ in range(world)]
        for rank in ranks:
            rank.load_state(json.loads(json.dumps(state)))
        batches = [one.batch(step, rank, world) for rank, one in enumerate(ranks)]
        states = [one.state(step + 1) for one in ranks]
        assert all(one == states[0] for one in states)
        expected = straight.batch(step)
        for rank, batch in enumerate(batches):
            mine = {field.name: getattr(expected, field.name)[rank::world] for field in fields(PackedBatch)}
            assert equal(batch, PackedBatch(**mine))
            seen.update(numbers(batch))
        alone += numbers(expected)
        state, step = states[0], step + 1
    waiting = Counter(straight._waiting[index][2][1] for index in range(len(straight._waiting)))
    whole, rest = divmod(straight._order.num_taken, NUM_SAMPLES["long"])
    counts = Counter(seen) + waiting
    assert Counter(alone) == seen and set(counts) == set(range(NUM_SAMPLES["long"]))
    assert sorted(counts.values()) == [whole] * (NUM_SAMPLES["long"] - rest) + [whole + 1] * rest


@settings(max_examples=6)
@given(st.lists(st.sampled_from([1, 2, 3, 7]), min_size=1, max_size=4), st.booleans())
def test_resuming_anywhere_changes_nothing(loader, runs, ahead):
    def fresh():
        return Prefetched(loader()) if ahead else loader()

    straight, own, step = loader(), fresh(), 0
    for number in runs:
        state = json.loads(json.dumps(own.state(step)))
        own = fresh()
        own.load_state(state)
        for _ in range(number):
            assert equal(own.batch(step), straight.batch(step))
            step += 1
    assert own.state(step) == straight.state(step)


def test_no_sample_waits_for_ever(loader):
    own = loader(weights=(1.0,), rows=1, length=60)
    for step in range(100):
        own.batch(step)
        oldest = min(drawn for _, drawn, _ in own._waiting)
        assert own._order.num_taken - oldest < 64 * 20  # at most 64 rows of some 20 samples


def test_other_rows_in_a_batch_are_the_same_rows(loader):
    one, other = loader(rows=2), loader(rows=4)
    assert equal(PackedBatch.cat([one.batch(0), one.batch(1)]), other.batch(0))


def test_micro_batches_of_a_step_may_be_asked_for_in_turn(loader):
    for own in (loader(), Prefetched(loader())):
        straight = loader()
        for step in range(12):
            expected = straight.batch(step)
            for part in range(2):
                mine = {field.name: getattr(expected, field.name)[part::2] for field in fields(PackedBatch)}
                assert equal(own.batch(step, part, 2), PackedBatch(**mine))
            assert own.state(step + 1) == straight.state(step + 1)


def test_a_state_of_another_mixture_is_refused(loader):
    state = loader().state(0)
    for other in (loader(weights=(0.6, 0.4)), loader(weights=(0.7,)), loader(seed=6), loader(length=LENGTH + 1)):
        with pytest.raises(ValueError, match="shards must be as where the run stopped"):
            other.load_state(state)


def test_an_error_ahead_reaches_the_user(loader):
    with pytest.raises(ValueError, match="got 4 rows, rank 0 of 3"):
        Prefetched(loader()).batch(0, 0, 3)


def test_it_draws_itself_as_a_tree(loader, folders):
    own = Prefetched(loader())
    own.batch(0)
    lines = str(own).splitlines()
    assert lines[0] == "2 steps ahead" and lines[-1].startswith("         `- 30.0% ")
    assert lines[-2].startswith(f"         |- 70.0% {folders[0][0].folder}: 150 samples of ")


def test_what_makes_no_mixture_is_refused(loader, folders):
    with pytest.raises(ValueError, match="length must be at least the 60 ids"):
        loader(length=59)
    for weights in ([], [1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="weights must be positive and one for each of 2 folders"):
            ShardLoader(folders[0], weights, rows=1, length=60, seed=0)
