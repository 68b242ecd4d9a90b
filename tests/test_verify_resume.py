"""A training that is killed and goes on is the training that nobody killed; and the comparison sees what differs."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from rebus.train import verify_resume
from rebus.train.verify_resume import Trial, compare, num_steps, order, verify

KILLS = 3
STEPS = num_steps(KILLS)
STATE = "checkpoint-12/state-00000.safetensors"


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    return folder, verify(folder, kills=KILLS, processes=1, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_resumed_is_the_straight_run(trial):
    folder, found = trial
    assert found["kills"] == KILLS and found["during_a_save"] >= 1
    assert found["bit_equal"], found
    assert len((folder / "killed" / "order-0.jsonl").read_text().splitlines()) > STEPS  # some steps were taken twice


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_under_deepspeed_too(tmp_path):
    found = verify(tmp_path, kills=2, processes=2, seed=1)
    assert found["kills"] == 2 and found["bit_equal"], found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_sample_is_read_once_by_two_processes_then_one_then_two(tmp_path):
    """The rate is level from the start, so that a training of fewer steps is the beginning of a longer one."""
    level = ("--optim.cooldown_fraction", "0")
    trial = Trial(tmp_path, steps=12, processes=1, seed=0)
    trial.finish(tmp_path / "straight", *level)
    for trial.steps, trial.processes in ((4, 2), (8, 1), (12, 2)):
        trial.finish(tmp_path / "elastic", *level)
        shutil.rmtree(tmp_path / "elastic" / "export")
    assert order(tmp_path / "elastic") == order(tmp_path / "straight")
    assert all(len(rows) == 2 for rows in order(tmp_path / "elastic").values())
    one, other = (safetensors.torch.load_file(tmp_path / name / STATE) for name in ("straight", "elastic"))
    assert all(torch.allclose(value, other[name], atol=1e-4) for name, value in one.items() if "weight/" in name)


def nudge(path, kind):
    state = safetensors.torch.load_file(path)
    name = next(name for name in state if name.startswith(kind))
    state[name].view(-1)[0] = torch.nextafter(state[name].view(-1)[0], torch.tensor(9.0))
    safetensors.torch.save_file(state, path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_differs_is_seen(trial, tmp_path):
    straight = trial[0] / "straight"

    def altered(change):
        shutil.rmtree(tmp_path, ignore_errors=True)
        shutil.copytree(straight, tmp_path)
        change()
        return [part for part, same in compare(straight, tmp_path, STEPS).items() if not same]

    def swap(name, key):
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        lines[0][key], lines[1][key] = lines[1][key], lines[0][key]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    state = tmp_path / f"checkpoint-{STEPS}" / "state-00000.safetensors"
    assert altered(lambda: None) == []
    assert altered(lambda: nudge(state, "weight/")) == ["parameters"]
    assert altered(lambda: nudge(state, "exp_avg_sq/")) == ["optimizer"]
    assert altered(lambda: swap("metrics.jsonl", "loss")) == ["losses"]
    assert altered(lambda: swap("order-0.jsonl", "rows")) == ["sample_order"]
    assert altered(lambda: (tmp_path / "export" / "tokenizer.json").write_text("{}")) == ["export"]


@pytest.mark.parametrize(
    ("flags", "message"), [(["--kills", "0"], "kills must be at least 1"), (["--kill"], "unknown")]
)
def test_the_command_refuses_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        verify_resume.main(flags)
    assert message in capsys.readouterr().err
