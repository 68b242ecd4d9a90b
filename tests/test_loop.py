"""The training loop on a stage small enough to run hundreds of steps a second."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from rebus.train.config import OptimConfig, RunConfig
from rebus.train.loop import launch, train
from rebus.train.runtime import Processes, pick_device

OPTIM = OptimConfig(lr=1e-2, warmup_steps=2, cooldown_fraction=0.5)


class SumStage:
    """Learns to add numbers; ``at_step`` lets a test interfere when a step's batch is made."""

    def __init__(self, run: RunConfig, at_step: Callable[[int], None] | None = None) -> None:
        self.run, self.at_step, self.parts = run, at_step, {"adder": "one"}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = nn.Sequential(
                nn.Linear(3, 17), nn.BatchNorm1d(17), nn.GELU(), nn.Dropout(0.1), nn.Linear(17, 1)
            )

    def batch(self, step: int, rank: int, world: int) -> Float[Tensor, "rows numbers"]:
        if self.at_step is not None:
            self.at_step(step)
        generator = torch.Generator().manual_seed(step)
        return torch.rand(self.run.batch_size, 3, generator=generator)[rank::world]

    def loss(self, batch: Float[Tensor, "rows numbers"]) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.model(batch) - batch.sum(1, keepdim=True)).square().mean()
        return error, {"root": error.detach().sqrt()}

    def validate(self) -> dict[str, float]:
        assert not self.model.training and not torch.is_grad_enabled()
        return {"error": self.loss(torch.full((4, 3), 0.5))[0].item()}

    def samples(self, folder: Path) -> None:
        Image.new("RGB", (8, 8)).save(folder / "black.png")

    def export(self, folder: Path) -> None:
        safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))


@dataclass(frozen=True, kw_only=True)
class _Config:
    run: RunConfig
    optim: OptimConfig


def run_config(output: Path, **changes: Any) -> RunConfig:
    return replace(RunConfig(output=output, steps=6, batch_size=8, dtype="float32", log_every=1), **changes)


def run(config: RunConfig, at_step: Callable[[int], None] | None = None, optim: OptimConfig = OPTIM) -> bool:
    return train(SumStage(config, at_step), config, optim, config)


def terminate_at(wanted: int) -> Callable[[int], None]:
    return lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == wanted else None


def losses(output: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    kept = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert len(dict(kept)) == len(kept), "every step is reported once"
    return dict(kept)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def state(checkpoint: Path) -> bytes:
    return (checkpoint / "state-00000.safetensors").read_bytes()


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"dtype": "bfloat16"}], ids=["plain", "average", "bfloat16"])
def test_stopped_and_resumed_equals_straight_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight, parts = (run_config(tmp_path / name, **changes) for name in ("straight", "parts"))
    assert run(straight)
    assert not run(parts, terminate_at(2))
    assert [path.name for path in parts.output.glob("checkpoint-*")] == ["checkpoint-3"]
    assert run(parts)
    assert weights(straight.output / "export") == weights(parts.output / "export")
    assert state(straight.output / "checkpoint-6") == state(parts.output / "checkpoint-6")
    assert losses(straight.output) == losses(parts.output)


def test_crash_loses_only_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    straight, parts = (run_config(tmp_path / name, save_every=2) for name in ("straight", "parts"))
    run(straight)

    def crash(step: int) -> None:
        if step == 5:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(parts, crash)
    assert max(losses(parts.output)) == 5
    assert run(parts)
    assert losses(straight.output) == losses(parts.output)
    assert weights(straight.output / "export") == weights(parts.output / "export")


def test_more_steps_go_on_from_the_end(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    run(config)
    before = losses(tmp_path)
    assert run(replace(config, steps=9))
    assert losses(tmp_path).items() >= before.items()
    assert sorted(losses(tmp_path)) == list(range(1, 10))


def test_nothing_left_to_do_exports_again(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    run(config)
    first = weights(tmp_path / "export")
    (tmp_path / "export" / "stale").touch()
    assert run(config)
    assert weights(tmp_path / "export") == first
    assert not (tmp_path / "export" / "stale").exists()


def test_changed_settings_hold_after_resume(tmp_path: Path) -> None:
    run(run_config(tmp_path / "a", steps=3))
    run(run_config(tmp_path / "b", steps=3))
    for name, decay in (("a", 0.0), ("b", 0.9)):
        run(run_config(tmp_path / name), optim=replace(OPTIM, weight_decay=decay))
    assert weights(tmp_path / "a" / "export") != weights(tmp_path / "b" / "export")


def test_time_limit_stops_with_a_checkpoint(tmp_path: Path) -> None:
    assert not run(run_config(tmp_path, max_minutes=1e-9))
    assert (tmp_path / "checkpoint-0").is_dir()
    assert not (tmp_path / "export").exists()


def test_slow_steps_are_saved_by_the_clock(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(step: int) -> None:
        seen.extend(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))

    run(run_config(tmp_path, save_minutes=1e-9), look)
    assert set(seen) == {0, 1, 2, 3, 4, 5}
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-6"}


def test_loss_that_is_not_finite_stops_at_once(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    stage = SumStage(config)

    def spoil(step: int) -> None:
        if step == 2:
            next(stage.model.parameters()).data.fill_(torch.nan)

    stage.at_step = spoil
    with pytest.raises(
        FloatingPointError, match=r"step 2: loss must be finite, got nan; its batch is in .*step-2-rank-0"
    ):
        train(stage, config, OPTIM, config)
    assert not list(tmp_path.glob("checkpoint-*"))
    noted = safetensors.torch.load_file(tmp_path / "suspicious" / "step-2-rank-0" / "part-0.safetensors")
    assert torch.equal(noted["batch"], SumStage(config).batch(2, 0, 1))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    stage = SumStage(config)
    own_loss = stage.loss
    weight = next(stage.model.parameters())

    def loss(batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = own_loss(batch)
        return value + (weight.sum() * 0).sqrt(), metrics  # the slope of a root at 0

    stage.loss = loss
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 0: the gradient's norm must be finite, got nan"):
        train(stage, config, OPTIM, config)
    assert torch.equal(weight, before)


def test_a_spike_is_written_down_and_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path, steps=80, save_every=30)
    stage = CountingStage(config)
    own_batch = stage.batch
    stage.batch = lambda step, rank, world: own_batch(step, rank, world) * (50 if step == 70 else 1)
    assert train(stage, config, OPTIM, config)
    assert [folder.name for folder in (tmp_path / "suspicious").iterdir()] == ["step-70-rank-0"]
    why = json.loads((tmp_path / "suspicious" / "step-70-rank-0" / "why.json").read_text())
    assert why["step"] == 70 and why["loss"] > why["mean"] and why["data"] == {"drawn": 71 * 7}
    assert "step 70: loss " in capsys.readouterr().out


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=2)
    run(config)
    with pytest.raises(ValueError, match="must hold no checkpoint when run.resume is false"):
        run(replace(config, resume=False))
    with pytest.raises(ValueError, match="run.ema must be on or off as in"):
        run(replace(config, ema=0.9))
    other = SumStage(config)
    other.model = nn.Linear(3, 1)
    with pytest.raises(
        ValueError, match="must be a checkpoint of this model: it has other parameters: 0.bias, 0.weight"
    ):
        train(other, config, OPTIM, config)
    other.model = SumStage(config).model
    other.model[4] = nn.Linear(17, 2)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match=r"4.weight must have shape \(2, 17\), got \(1, 17\)"):
        train(other, config, OPTIM, config)
    other = SumStage(config)
    other.parts = {"adder": "another"}
    with pytest.raises(ValueError, match=r"must be {'adder': 'one'}, as in .*, got {'adder': 'another'}"):
        train(other, config, OPTIM, config)


def test_frozen_weights_must_be_those_of_the_run(tmp_path: Path) -> None:
    config, frozen = run_config(tmp_path, steps=3), replace(OPTIM, frozen=("0",))
    run(config, optim=frozen)
    other = SumStage(config)
    next(other.model.parameters()).data += 1
    with pytest.raises(ValueError, match="parts of the run must be .*frozen_weights"):
        train(other, replace(config, steps=6), frozen, config)
    assert run(replace(config, steps=6), optim=frozen)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, config = (run_config(tmp_path / name, save_every=2) for name in ("straight", "damaged"))
    run(straight)
    assert not run(config, terminate_at(4))
    file = config.output / "checkpoint-5" / "state-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run(config)
    printed = capsys.readouterr().out
    assert "checkpoint-5 is damaged and left out: state-00000.safetensors not as written" in printed
    assert "on from checkpoint-4" in printed
    assert losses(straight.output) == losses(config.output)
    assert weights(straight.output / "export") == weights(config.output / "export")


def test_means_over_a_checkpoint_are_those_of_a_straight_run(tmp_path: Path) -> None:
    straight, parts = (run_config(tmp_path / name, log_every=6, dtype="bfloat16") for name in ("straight", "parts"))
    run(straight)
    assert not run(parts, terminate_at(3))
    assert run(parts)
    assert losses(straight.output) == losses(parts.output) and list(losses(parts.output)) == [6]


class CountingStage(SumStage):
    """Draws from a generator of its own, so that its batches depend on those before."""

    def __init__(self, run: RunConfig, at_step: Callable[[int], None] | None = None) -> None:
        super().__init__(run, at_step)
        self.drawn = 0

    def batch(self, step: int, rank: int, world: int) -> Float[Tensor, "rows numbers"]:
        self.drawn += 7
        return super().batch(self.drawn, rank, world)

    def data_state(self, step: int) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_data_state(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def test_data_that_has_a_state_goes_on_where_it_was(tmp_path: Path) -> None:
    straight, parts = (run_config(tmp_path / name, save_every=2) for name in ("straight", "parts"))
    assert train(CountingStage(straight), straight, OPTIM, straight)
    with pytest.raises(ZeroDivisionError):
        train(CountingStage(parts, lambda step: 1 // (step - 35)), parts, OPTIM, parts)
    assert train(CountingStage(parts), parts, OPTIM, parts)
    assert losses(straight.output) == losses(parts.output)
    assert weights(straight.output / "export") == weights(parts.output / "export")


def test_a_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _Config(run=run_config(tmp_path, steps=2), optim=OPTIM)
    assert launch("sum", lambda: SumStage(config.run), config)
    with pytest.raises(SystemExit, match="2"):
        refused = replace(config, run=replace(config.run, resume=False))
        launch("sum", lambda: SumStage(refused.run), refused)
    assert capsys.readouterr().err.startswith("sum: run.output must hold no checkpoint when run.resume is false")


def test_half_a_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=2)
    run(config)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert run(replace(config, steps=4)) and list(losses(tmp_path)) == [1, 2, 3, 4]


def test_it_learns_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_config(tmp_path, steps=150, log_every=50, validate_every=50, batch_size=32, ema=0.9))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    errors = [row["validation/error"] for row in rows if "validation/error" in row]
    assert [row["step"] for row in rows] == [50, 50, 100, 100, 150, 150]
    assert errors[-1] < 0.05
    wanted = {"step", "loss", "root", "gradient_norm", "lr", "samples_per_second", "seconds", "peak_memory_mib"}
    assert set(rows[-2]) == wanted
    assert rows[-2]["loss"] < 0.1 * rows[0]["loss"]
    assert any((tmp_path / "tensorboard").iterdir()) and (tmp_path / "samples" / "black.png").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: from the start"
    assert lines[1].startswith("50/150  loss ") and lines[-3:][0] == f"export: {tmp_path / 'export'}"


def test_bar_stands_in_for_the_lines_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(run_config(tmp_path))
    printed = capsys.readouterr()
    assert "1/6  loss" not in printed.out + printed.err
    assert "export:" in printed.err and "6/6" in printed.err


def test_loss_is_compiled_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", note)
    run(run_config(tmp_path / "plain", steps=1))
    assert not compiled
    run(run_config(tmp_path / "compiled", steps=1, compile=True))
    assert compiled == ["loss"]


def test_device_of_a_process() -> None:
    second = Processes(rank=1, world=2, local_rank=1)
    assert pick_device(run_config(Path("unused"), device="cuda"), second) == torch.device("cuda", 1)
    assert pick_device(run_config(Path("unused"), device="cuda:0"), second) == torch.device("cuda", 0)
    assert pick_device(run_config(Path("unused"), device="cpu"), second) == torch.device("cpu")


def test_threads_are_those_of_the_run(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        run(run_config(tmp_path, steps=1, threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_activations_are_not_recomputed_where_there_are_no_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run.activation_checkpointing must be false for a Sequential"):
        run(run_config(tmp_path, activation_checkpointing=True))
