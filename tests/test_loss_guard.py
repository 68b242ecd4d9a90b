"""What is a spike of the loss, and what is written down of it."""

import json
import random
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from rebus.train.loss_guard import NUM_DUMPS, LossGuard


def noisy(number, seed=0):
    rng = random.Random(seed)
    return [3.0 - 0.001 * step + rng.gauss(0, 0.1) for step in range(number)]


def test_only_what_is_far_above_is_a_spike(tmp_path):
    guard = LossGuard(tmp_path, 6.0)
    assert not any(guard.is_spike(loss) for loss in noisy(2000))
    assert not guard.is_spike(0.0) and not guard.is_spike(guard.mean + 0.3)
    assert guard.is_spike(guard.mean + 1.5)
    assert guard.is_spike(guard.mean + 1.5), "one spike hardly makes the next one usual"


def test_the_first_losses_are_no_spikes_and_a_still_loss_has_room(tmp_path):
    guard = LossGuard(tmp_path, 6.0)
    assert not any(guard.is_spike(loss) for loss in [9.0, 1.0] * 25)
    still = LossGuard(tmp_path, 6.0)
    assert not any(still.is_spike(2.0) for _ in range(100))
    assert not still.is_spike(2.001) and still.is_spike(2.1)


def test_it_goes_on_from_its_state(tmp_path):
    straight, first = LossGuard(tmp_path, 6.0), LossGuard(tmp_path, 6.0)
    for loss in noisy(100):
        straight.is_spike(loss)
        first.is_spike(loss)
    second = LossGuard(tmp_path, 6.0)
    second.load_state(json.loads(json.dumps(first.state())))
    for loss in noisy(50, seed=1):
        straight.is_spike(loss)
        second.is_spike(loss)
    assert second.state() == straight.state()


def test_all_tensors_of_a_batch_are_written_by_their_paths_but_not_for_ever(tmp_path):
    @dataclass(frozen=True)
    class Batch:
        ids: Tensor
        heads: tuple[dict[str, Tensor], ...]
        name: str = "no tensor"

    guard = LossGuard(tmp_path, 6.0)
    ids = torch.arange(6).reshape(2, 3).T
    folder = guard.dump(3, 1, [Batch(ids, ({"places": ids},)), ids], {"loss": 9.0})
    assert folder == tmp_path / "step-3-rank-1"
    first, second = (safetensors.torch.load_file(folder / f"part-{number}.safetensors") for number in range(2))
    assert first.keys() == {"ids", "heads.0.places"} and second.keys() == {"batch"}
    assert torch.equal(first["heads.0.places"], ids) and torch.equal(second["batch"], ids)
    assert json.loads((folder / "why.json").read_text()) == {"step": 3, "rank": 1, "loss": 9.0}
    assert [guard.dump(step, 0, [], {}) is None for step in range(NUM_DUMPS)] == [False] * (NUM_DUMPS - 1) + [True]
