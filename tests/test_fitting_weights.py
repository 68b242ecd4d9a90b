import pytest
import safetensors.torch
import torch
from torch import nn

from rebus.model.fitting_weights import load_fitting


def saved(path, **weights):
    safetensors.torch.save_file(weights, path / "model.safetensors")
    return path / "model.safetensors"


def test_weights_that_fit_are_copied(tmp_path):
    model = nn.Linear(3, 2)
    load_fitting(model, saved(tmp_path, weight=torch.ones(2, 3), bias=torch.full((2,), 5.0)))
    assert model(torch.ones(1, 3)).tolist() == [[8.0, 8.0]]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"weight": (2, 3)}, "missing: bias$"),
        ({"weight": (2, 3), "bias": (2,), "more": (1,)}, "unexpected: more$"),
        ({"weight": (3, 2), "bias": (2,)}, "of another shape: weight$"),
        ({"weights": (2, 2), "bias": (3,)}, "missing: weight; unexpected: weights; of another shape: bias$"),
        (
            {"weight": (2, 3), "bias": (2,)} | {f"more{index}": (1,) for index in range(10)},
            "unexpected: more0, more1, more2, more3, more4, more5, more6, more7 and 2 more$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told_by_name_and_change_nothing(weights, told, tmp_path):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    path = saved(tmp_path, **{name: torch.ones(shape) for name, shape in weights.items()})
    with pytest.raises(ValueError, match=f"model.safetensors: the weights must fit config.json, got {told}"):
        load_fitting(model, path)
    assert torch.equal(model.weight, before)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold the weights, got no such file"):
        load_fitting(nn.Linear(3, 2), tmp_path / "model.safetensors")
