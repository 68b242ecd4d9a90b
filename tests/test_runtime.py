"""The ground a training stands on, and the average of its weights."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from rebus.train import runtime
from rebus.train.average import WeightAverage
from rebus.train.config import RunConfig
from rebus.train.runtime import Processes, check_fits, to_device


def test_an_average_is_not_of_rounded_weights(tmp_path) -> None:
    run = RunConfig(output=tmp_path, steps=1, batch_size=2, ema=0.9)
    check_fits(run, Processes(0, 1, 0))  # float32 weights
    with pytest.raises(ValueError, match="run.ema must be none where DeepSpeed trains weights in bfloat16, got 0.9"):
        check_fits(run, Processes(0, 2, 0))


def test_blocks_of_a_language_model_are_compiled_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    assert runtime.compiled(model, len) is len
    assert compiled == list(model.model.layers)


def test_batches_move_as_they_are() -> None:
    @dataclass(frozen=True)
    class Pair:
        ids: Tensor
        name: str

    there = to_device({"pair": Pair(torch.ones(2), "a"), "rest": [(torch.ones(3), 4)]}, torch.device("meta"))
    assert there["pair"].ids.is_meta and there["pair"].name == "a"
    assert there["rest"][0][0].is_meta and there["rest"][0][1] == 4


def test_average_follows_the_weights_and_steps_aside() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, 0.5)
    nn.init.constant_(model.weight, 2.0)
    average.update(0)  # warming up: a tenth of the old
    average.update(1000)
    with average.in_place():
        assert model.weight.item() == pytest.approx(0.5 * 1.9 + 0.5 * 2.0)
    assert model.weight.item() == 2.0
    with pytest.raises(ValueError, match="averages must be of the model's parameters"):
        average.load({"other": torch.ones(1)})
