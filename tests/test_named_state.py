"""Weights and moments by name, in as many files as they need."""

import pytest
import torch
from torch import nn

from rebus.train import named_state
from rebus.train.config import OptimConfig
from rebus.train.named_state import WholeState, read, write
from rebus.train.updates import adamw


def trained(seed: int, steps: int) -> tuple[nn.Module, WholeState]:
    """A model after some steps, in which one part is frozen, one gets no gradient and two are tied."""
    torch.manual_seed(seed)
    parts = {"first": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3), "frozen": nn.Linear(3, 3), "unused": nn.Linear(2, 2)}
    model = nn.ModuleDict({**parts, "tied": nn.Linear(3, 3)})
    model["tied"].weight = model["first"].weight
    model["frozen"].requires_grad_(False)
    optimizer = adamw(model, OptimConfig(lr=1e-2))
    for _ in range(steps):
        hidden = model["norm"](model["first"](torch.randn(8, 3)))
        model["tied"](model["frozen"](hidden)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, WholeState(optimizer)


@pytest.mark.parametrize(("file_bytes", "num_files"), [(1 << 30, 1), (60, 5)])
def test_what_is_read_is_what_was_written(tmp_path, monkeypatch, file_bytes, num_files):
    monkeypatch.setattr(named_state, "_FILE_BYTES", file_bytes)
    model, state = trained(seed=0, steps=3)
    write(tmp_path, model, state, first=True)
    assert len(list(tmp_path.iterdir())) == num_files
    other, other_state = trained(seed=1, steps=1)
    frozen = other["frozen"].weight.clone()
    read(tmp_path, other, other_state)
    for name, parameter in other.named_parameters():
        if not name.startswith("frozen"):
            mine = state.entries(dict(model.named_parameters())[name])
            its = other_state.entries(parameter)
            assert (
                mine.keys()
                == its.keys()
                == ({"weight"} if "unused" in name else {"weight", "exp_avg", "exp_avg_sq", "step"})
            )
            assert all(torch.equal(value, its[kind]) for kind, value in mine.items())
    assert torch.equal(other["frozen"].weight, frozen) and other["tied"].weight is other["first"].weight
    assert all(torch.equal(buffer, dict(other.named_buffers())[name]) for name, buffer in model.named_buffers())


def test_only_the_first_process_writes(tmp_path):
    write(tmp_path, *trained(seed=0, steps=1), first=False)
    assert not list(tmp_path.iterdir())


def test_a_state_of_other_parameters_is_refused(tmp_path):
    model, state = trained(seed=0, steps=1)
    write(tmp_path, model, state, first=True)
    model["first"].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="must be a checkpoint of this model: it has other parameters: first.bias"):
        read(tmp_path, model, state)
    (tmp_path / "state-00000.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="must be a checkpoint of this model"):
        read(tmp_path, model, state)
