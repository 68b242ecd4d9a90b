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

from rebus.train.average import WeightAverage
from rebus.train.config import OptimConfig, RunConfig
from rebus.train.loop import launch, train
from rebus.train.runtime import Processes, pick_device, to_device
from rebus.train.updates import adamw

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


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"dtype": "bfloat16"}], ids=["plain", "average", "bfloat16"])
def test_stopped_and_resumed_equals_straight_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight, parts = (run_config(tmp_path / name, **changes) for name in ("straight", "parts"))
    assert run(straight)
    assert not run(parts, terminate_at(2))
    assert [path.name for path in parts.output.glob("checkpoint-*")] == ["checkpoint-3"]
    assert run(parts)
    for folder in ("export", "checkpoint-6"):
        assert weights(straight.output / folder) == weights(parts.output / folder)
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
    with pytest.raises(FloatingPointError, match=r"step 2: loss must be finite, got nan"):
        train(stage, config, OPTIM, config)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, steps=2)
    run(config)
    with pytest.raises(ValueError, match="must hold no checkpoint when run.resume is false"):
        run(replace(config, resume=False))
    with pytest.raises(ValueError, match="run.ema must be on or off as in"):
        run(replace(config, ema=0.9))
    other = SumStage(config)
    other.model = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="must be a whole checkpoint of this model"):
        train(other, config, OPTIM, config)
    other = SumStage(config)
    other.parts = {"adder": "another"}
    with pytest.raises(ValueError, match=r"must be {'adder': 'one'}, as in .*, got {'adder': 'another'}"):
        train(other, config, OPTIM, config)
    for name in ("model.safetensors", "optimizer.pt"):
        file = tmp_path / "checkpoint-2" / name
        whole = file.read_bytes()
        for torn in (b"", b"no pickle, no archive", whole[: len(whole) // 2]):
            file.write_bytes(torn)
            with pytest.raises(ValueError, match="must be a whole checkpoint of this model"):
                run(config)
        file.write_bytes(whole)
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="must be a checkpoint of a training without DeepSpeed"):
        run(config)


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


def test_batches_move_as_they_are() -> None:
    @dataclass(frozen=True)
    class Pair:
        ids: Tensor
        name: str

    there = to_device({"pair": Pair(torch.ones(2), "a"), "rest": [(torch.ones(3), 4)]}, torch.device("meta"))
    assert there["pair"].ids.is_meta and there["pair"].name == "a"
    assert there["rest"][0][0].is_meta and there["rest"][0][1] == 4


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


def test_only_matrices_that_are_no_embeddings_decay() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(5, 3), "linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    decaying, rest = adamw(model, OPTIM).param_groups
    assert [tuple(one.shape) for one in decaying["params"]] == [(2, 3)]
    assert decaying["weight_decay"] == OPTIM.weight_decay and rest["weight_decay"] == 0.0
    assert len(rest["params"]) == 4
