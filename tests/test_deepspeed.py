"""DeepSpeed against one plain process. This file is also the program that torchrun starts."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Int
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


class PadStage:
    """Each row counts upwards; the shorter a row, the fewer its targets, so that ranks differ in their counts."""

    def __init__(self, config: PadStageConfig) -> None:
        self.config, self.parts = config, {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: nn.Module = nn.Sequential(nn.Embedding(13, 16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 13))

    def batch(self, step: int, rank: int, world: int) -> Int[Tensor, "rows length"]:
        generator = torch.Generator().manual_seed(step)
        num_rows = self.config.run.batch_size
        ids = (torch.randint(13, (num_rows, 1), generator=generator) + torch.arange(9)) % 13
        lengths = torch.randint(2, 10, (num_rows, 1), generator=generator)
        return ids.masked_fill(torch.arange(9) >= lengths, PADDING)[rank::world]

    def loss(self, batch: Int[Tensor, "rows length"]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model(batch[:, :-1].clamp_min(0))
        targets = batch[:, 1:]
        count = (targets != PADDING).sum().float()
        if dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PADDING, reduction="sum")
        return total / count, {"count": count}

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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "--run.output", str(output)]
    done = subprocess.run([sys.executable, "-m", *command, *flags], env=environment, capture_output=True, text=True)
    # The export is the last thing written; a launcher's own exit code tells less.
    assert (output / "export" / "model.safetensors").exists(), done.stderr[-3000:]


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


@pytest.mark.timeout(600)  # seconds, but four processes start, and other work may have the cores
@pytest.mark.slow
def test_two_processes_equal_one_and_resume_exactly(tmp_path: Path) -> None:
    plain(tmp_path / "one")
    launch(tmp_path / "two")
    assert metric(tmp_path / "two", "loss") == pytest.approx(metric(tmp_path / "one", "loss"), abs=1e-4)
    assert metric(tmp_path / "two", "validation/loss") == pytest.approx(
        metric(tmp_path / "one", "validation/loss"), abs=1e-4
    )
    one, two = exported(tmp_path / "one"), exported(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)

    losses = metric(tmp_path / "two", "loss")
    resume_from_the_middle(tmp_path / "two")
    assert metric(tmp_path / "two", "loss") == losses
    assert all(torch.equal(value, two[name]) for name, value in exported(tmp_path / "two").items())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("zero_stage", ["1", "2"])
def test_bfloat16_is_near_and_resumes_exactly(tmp_path: Path, zero_stage: str) -> None:
    flags = ["--run.dtype", "bfloat16", "--run.zero_stage", zero_stage]
    plain(tmp_path / "one", dtype="bfloat16")
    launch(tmp_path / "two", *flags)
    losses, weights = metric(tmp_path / "two", "loss"), exported(tmp_path / "two")
    assert losses == pytest.approx(metric(tmp_path / "one", "loss"), abs=0.02)
    assert len(metric(tmp_path / "two", "gradient_norm")) == 6
    resume_from_the_middle(tmp_path / "two", *flags)
    assert metric(tmp_path / "two", "loss") == losses
    assert all(torch.equal(value, weights[name]) for name, value in exported(tmp_path / "two").items())


def test_generated_config() -> None:
    config = tiny()
    generated = deepspeed_config(config.run, config.optim, 2)
    assert generated["train_micro_batch_size_per_gpu"] == 4
    assert generated["gradient_clipping"] == 0.5
    assert not generated["bf16"]["enabled"] and generated["zero_optimization"]["stage"] == 0
    half = deepspeed_config(replace(config.run, dtype="bfloat16"), config.optim, 1)
    assert half["bf16"]["enabled"] and half["zero_optimization"]["stage"] == 1


def test_batch_must_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="run.batch_size must be a multiple of 3 processes, got 8"):
        start_processes(tiny().run)


if __name__ == "__main__":
    asked = parse({"tiny": tiny})
    train(PadStage(asked), asked.run, asked.optim, asked)
