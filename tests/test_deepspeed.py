"""DeepSpeed against one plain process. This file is also the program that torchrun starts."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.loop import train
from rebus.train.runtime import deepspeed_config, start_processes

PADDING = -100


@dataclass(frozen=True, kw_only=True)
class PadStageConfig:
    """Next-token prediction on rows of unequal length."""

    run: RunConfig
    """Steps and folders."""
    optim: OptimConfig
    """Learning rate."""
    spoiled_step: int | None = None
    """Whose gradient is not finite, while its loss is."""


@dataclass(frozen=True, eq=False)
class PadBatch:
    """Rows, and how many targets their loss is divided by."""

    rows: Int[Tensor, "rows length"]
    num_targets: Float[Tensor, ""]


class PadStage:
    """Each row counts upwards; the shorter a row, the fewer its targets, so that ranks differ in their counts."""

    def __init__(self, config: PadStageConfig) -> None:
        self.config, self.parts = config, {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = nn.Sequential(nn.Embedding(13, 16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 13))

    def batch(self, step: int, rank: int, world: int) -> PadBatch:
        self.step = step
        generator = torch.Generator().manual_seed(step)
        num_rows = self.config.run.batch_size
        ids = (torch.randint(13, (num_rows, 1), generator=generator) + torch.arange(9)) % 13
        lengths = torch.randint(2, 10, (num_rows, 1), generator=generator)
        rows = ids.masked_fill(torch.arange(9) >= lengths, PADDING)[rank::world]
        return PadBatch(rows, (rows[:, 1:] != PADDING).sum().float())

    def loss(self, batch: PadBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model(batch.rows[:, :-1].clamp_min(0))
        targets = batch.rows[:, 1:].flatten()
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=PADDING, reduction="sum")
        if self.step == self.config.spoiled_step:
            total = total + (self.model.get_submodule("1").weight.sum() * 0).sqrt()  # the slope of a root at 0
        return total / batch.num_targets, {"count": batch.num_targets}

    def validate(self) -> dict[str, float]:
        return {"loss": self.loss(self.batch(1000, 0, 1))[0].item()}

    def samples(self, folder: Path) -> None:
        pass

    def export(self, folder: Path) -> None:
        safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))


def tiny() -> PadStageConfig:
    """Six steps."""
    return PadStageConfig(
        run=RunConfig(output=Path("unset"), steps=6, batch_size=8, dtype="float32", log_every=1, save_every=3),
        optim=OptimConfig(lr=1e-2, warmup_steps=1, clip_norm=0.5),
    )


def launch(output: Path, *flags: str) -> None:
    start([["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]], output, *flags)


def start(launchers: list[list[str]], output: Path, *flags: str) -> None:
    """Starts this file by each launcher at once, the modules of Python that they are."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    program = [__file__, "--run.output", str(output), *flags]
    commands = [[sys.executable, "-m", *launcher, *program] for launcher in launchers]
    nodes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    printed = [node.communicate()[0] for node in nodes]
    # The export is the last thing written; a launcher's own exit code tells less.
    assert (output / "export" / "model.safetensors").exists(), "\n".join(printed)[-3000:]


def metric(output: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def exported(output: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(output / "export" / "model.safetensors")


def plain(output: Path, **changes: Any) -> None:
    config = replace(tiny(), run=replace(tiny().run, output=output, **changes))
    train(PadStage(config), config.run, config.optim, config)


def resume_from_the_middle(output: Path, *flags: str) -> None:
    shutil.rmtree(output / "checkpoint-6")
    shutil.rmtree(output / "export")
    launch(output, *flags)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs of one process without DeepSpeed, by number format."""
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in ("float32", "bfloat16")}
    for dtype, folder in folders.items():
        plain(folder, dtype=dtype)
    return folders


def test_micro_batches_take_the_very_step_of_the_whole_batch(tmp_path: Path) -> None:
    plain(tmp_path / "whole")
    plain(tmp_path / "parts", accumulation=4)
    for name in ("loss", "gradient_norm"):
        assert metric(tmp_path / "parts", name) == pytest.approx(metric(tmp_path / "whole", name), rel=1e-6)
    whole, parts = exported(tmp_path / "whole"), exported(tmp_path / "parts")
    assert all(torch.allclose(whole[name], parts[name], rtol=0, atol=1e-6) for name in whole)


@pytest.mark.timeout(600)  # seconds, but four processes start, and other work may have the cores
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "zero_stage", "tolerance"),
    [*(("float32", stage, 1e-4) for stage in range(4)), *(("bfloat16", stage, 0.02) for stage in range(1, 4))],
)
def test_two_processes_have_the_losses_of_one_and_resume_exactly(
    alone: dict[str, Path], tmp_path: Path, dtype: str, zero_stage: int, tolerance: float
) -> None:
    flags = ["--run.dtype", dtype, "--run.zero_stage", str(zero_stage)]
    launch(tmp_path, *flags)
    one = alone[dtype]
    for name in ("loss", "validation/loss"):
        assert metric(tmp_path, name) == pytest.approx(metric(one, name), abs=tolerance)
    assert metric(tmp_path, "gradient_norm") == pytest.approx(metric(one, "gradient_norm"), rel=0.05)
    weights, losses = exported(tmp_path), metric(tmp_path, "loss")
    if dtype == "float32":
        expected = exported(one)
        assert all(torch.allclose(expected[name], weights[name], atol=1e-4) for name in expected)
    checkpoint = (tmp_path / "checkpoint-6" / "state-00000.safetensors").read_bytes()
    resume_from_the_middle(tmp_path, *flags)
    assert metric(tmp_path, "loss") == losses
    assert all(torch.equal(value, weights[name]) for name, value in exported(tmp_path).items())
    assert (tmp_path / "checkpoint-6" / "state-00000.safetensors").read_bytes() == checkpoint


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("zero_stage", ["0", "2"])
def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(tmp_path: Path, zero_stage: str) -> None:
    flags = ["--run.output", str(tmp_path), "--run.deepspeed", "true", "--run.zero_stage", zero_stage]
    command = [sys.executable, __file__, *flags, "--spoiled_step", "4", "--run.save_every", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "step 4: the gradient's norm must be finite" in done.stderr, done.stderr[-2000:]
    assert not (tmp_path / "export").exists()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    newest = safetensors.torch.load_file(tmp_path / "checkpoint-4" / "state-00000.safetensors")
    assert all(torch.isfinite(value).all() for value in newest.values())


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_processes_and_stages_may_change_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    constant = replace(tiny().optim, cooldown_fraction=0.0)  # the rate of a step is then no matter of their number
    config = replace(tiny(), optim=constant, run=replace(tiny().run, output=tmp_path / "one"))
    train(PadStage(config), config.run, config.optim, config)
    flags = ["--optim.cooldown_fraction", "0", "--run.zero_stage"]
    launch(tmp_path / "many", *flags, "1", "--run.steps", "2")
    middle = replace(config.run, output=tmp_path / "many", steps=4)
    train(PadStage(config), middle, config.optim, config)
    launch(tmp_path / "many", *flags, "3", "--run.steps", "5")
    launch(tmp_path / "many", *flags, "2")
    assert metric(tmp_path / "many", "loss") == pytest.approx(metric(tmp_path / "one", "loss"), abs=1e-5)
    one, many = exported(tmp_path / "one"), exported(tmp_path / "many")
    assert all(torch.allclose(one[name], many[name], atol=1e-5) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("zero_stage", ["0", "3"])
def test_two_processes_with_micro_batches_and_rates_of_parts_equal_one(tmp_path: Path, zero_stage: str) -> None:
    config = replace(tiny(), run=replace(tiny().run, output=tmp_path / "one"))
    config = replace(config, optim=replace(config.optim, rates={"1": 0.25}, frozen=("3",)))
    train(PadStage(config), config.run, config.optim, config)
    flags = ["--run.zero_stage", zero_stage, "--run.accumulation", "2"]
    launch(tmp_path / "two", *flags, "--optim.rates", '{"1": 0.25}', "--optim.frozen", '["3"]')
    assert metric(tmp_path / "two", "loss") == pytest.approx(metric(tmp_path / "one", "loss"), rel=1e-6)
    one, two = exported(tmp_path / "one"), exported(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-6) for name in one)
    assert torch.equal(two["3.weight"], PadStage(config).model.state_dict()["3.weight"])
    resume_from_the_middle(tmp_path / "two", *flags, "--optim.rates", '{"1": 0.25}', "--optim.frozen", '["3"]')
    assert all(torch.equal(value, two[name]) for name, value in exported(tmp_path / "two").items())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("zero_stage", ["1", "2", "3"])
def test_offloading_changes_nothing(tmp_path: Path, zero_stage: str) -> None:
    flags = ["--run.dtype", "bfloat16", "--run.zero_stage", zero_stage]
    launch(tmp_path / "kept", *flags)
    launch(tmp_path / "offloaded", *flags, "--run.offload", "true")
    kept, offloaded = exported(tmp_path / "kept"), exported(tmp_path / "offloaded")
    assert all(torch.equal(kept[name], offloaded[name]) for name in kept)


def launchers_of(kind: str) -> list[list[str]]:
    """Returns what starts two processes, as one node or as two."""
    if kind == "deepspeed":
        return [["deepspeed.launcher.runner", "--num_gpus", "2"]]
    if kind == "accelerate":
        return [["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free.getsockname()[1]}"]
    return [["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *meeting] for _ in range(2)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["deepspeed", "accelerate", "two nodes of torchrun"])
def test_all_launchers_start_the_same_training(alone: dict[str, Path], tmp_path: Path, kind: str) -> None:
    start(launchers_of(kind), tmp_path)
    assert metric(tmp_path, "loss") == pytest.approx(metric(alone["float32"], "loss"), abs=1e-4)
    assert metric(tmp_path, "count") == pytest.approx([one / 2 for one in metric(alone["float32"], "count")])


def test_generated_config() -> None:
    config = tiny()
    generated = deepspeed_config(config.run, config.optim, 2)
    assert generated["train_micro_batch_size_per_gpu"] == 4
    assert generated["gradient_clipping"] == 0.0  # the updater's own business at stage 0
    assert not generated["bf16"]["enabled"] and generated["zero_optimization"]["stage"] == 0
    half = deepspeed_config(replace(config.run, dtype="bfloat16"), config.optim, 1)
    assert half["bf16"]["enabled"] and half["zero_optimization"]["stage"] == 1
    scattered = replace(config.run, zero_stage=3, offload=True, accumulation=2)
    generated = deepspeed_config(scattered, config.optim, 2)
    assert (generated["train_micro_batch_size_per_gpu"], generated["gradient_accumulation_steps"]) == (2, 2)
    devices = {key: generated["zero_optimization"][key]["device"] for key in ("offload_optimizer", "offload_param")}
    assert set(devices.values()) == {"cpu"} and generated["zero_force_ds_cpu_optimizer"] is False
    second = deepspeed_config(replace(scattered, zero_stage=2), config.optim, 2)
    assert set(second["zero_optimization"]) == {"stage", "offload_optimizer"}


def test_batch_must_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="run.batch_size must be a multiple of 3 processes, got 8"):
        start_processes(tiny().run)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a multiple of 2 processes with 3 micro-batches each, got 8"):
        start_processes(replace(tiny().run, accumulation=3))


def test_offloading_needs_deepspeed() -> None:
    offloading = replace(tiny().run, zero_stage=2, offload=True)
    with pytest.raises(ValueError, match="run.offload must be false in one process without run.deepspeed, got True"):
        start_processes(offloading)


if __name__ == "__main__":
    asked = parse({"tiny": tiny})
    train(PadStage(asked), asked.run, asked.optim, asked)
