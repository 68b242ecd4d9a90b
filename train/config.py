"""What every training needs to be told: the run and the optimizer, as frozen dataclasses."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebus.train.command_line import parse as parse


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and the trapezoid its learning rate follows: up, level, down to zero."""

    lr: float
    """Learning rate on the level part."""
    warmup_steps: int = 100
    """Steps over which the rate rises from zero."""
    cooldown_fraction: float = 0.2
    """Last share of all steps over which the rate falls to zero, in [0, 1]."""
    weight_decay: float = 0.05
    """Pull of weight matrices towards zero; embeddings and vectors have none."""
    beta1: float = 0.9
    """Memory of the mean of the gradients."""
    beta2: float = 0.95
    """Memory of their squares."""
    clip_norm: float = 1.0
    """Longest gradient, over all parameters."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip_norm"):
            _check(getattr(self, name) > 0, f"optim.{name}", "positive", getattr(self, name))
        for name in ("warmup_steps", "weight_decay"):
            _check(getattr(self, name) >= 0, f"optim.{name}", "at least 0", getattr(self, name))
        _check(0 <= self.cooldown_fraction <= 1, "optim.cooldown_fraction", "in [0, 1]", self.cooldown_fraction)
        for name in ("beta1", "beta2"):
            _check(0 <= getattr(self, name) < 1, f"optim.{name}", "in [0, 1)", getattr(self, name))

    def learning_rate(self, step: int, num_steps: int) -> float:
        """Returns the rate of a step, counted from 0, of a run of ``num_steps``; never exactly zero."""
        cooldown_steps = math.ceil(self.cooldown_fraction * num_steps)
        rising = (step + 1) / (self.warmup_steps + 1)
        falling = (num_steps - step) / (cooldown_steps + 1)
        return self.lr * min(1.0, rising, falling)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long a training runs, on what, and what it leaves behind."""

    output: Path
    """Folder for checkpoints, metrics, samples and the exported model."""
    steps: int
    """Optimizer steps in all; a finished run given more goes on."""
    batch_size: int
    """Rows of one step, over all processes together."""
    seed: int = 0
    """Decides the data and every random draw."""
    device: str = "auto"
    """A torch device; auto takes an accelerator if there is one."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the arithmetic; weights stay float32 except under DeepSpeed with bfloat16."""
    compile: bool = False
    """Whether the loss goes through torch.compile."""
    threads: int | None = None
    """Processor threads; all by default. Trainings that share a machine want fewer."""
    ema: float | None = None
    """Memory of the running average of the weights, which is then validated and exported; none by default."""
    log_every: int = 20
    """Steps between two lines of metrics."""
    validate_every: int | None = None
    """Steps between two validations; only at the end by default."""
    save_every: int = 500
    """Steps between two checkpoints."""
    save_minutes: float = 10.0
    """Minutes between two checkpoints, where the steps are slow."""
    max_minutes: float | None = None
    """Minutes after which to save and stop; the same command goes on from there."""
    resume: bool = True
    """Whether to go on from the newest checkpoint; without it the folder must hold none."""
    deepspeed: bool = False
    """Whether DeepSpeed trains a single process too; several are always its."""
    zero_stage: int | None = None
    """What DeepSpeed shards: 0 nothing, 1 optimizer, 2 gradients too. 0 for float32 and 1 for bfloat16 by default."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every", "save_minutes"):
            _check(getattr(self, name) > 0, f"run.{name}", "positive", getattr(self, name))
        for name in ("threads", "validate_every", "max_minutes"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"run.{name}", "positive", value)
        _check(self.ema is None or 0 <= self.ema < 1, "run.ema", "in [0, 1)", self.ema)
        # DeepSpeed's bfloat16 optimizer of stage 0 starts AdamW one step late: another training.
        lowest = 1 if self.dtype == "bfloat16" else 0
        _check(lowest <= self.sharding <= 2, "run.zero_stage", f"in [{lowest}, 2] for {self.dtype}", self.zero_stage)

    @property
    def sharding(self) -> int:
        """The ZeRO stage, with the default decided."""
        return self.zero_stage if self.zero_stage is not None else int(self.dtype == "bfloat16")


def _check(holds: bool, name: str, wanted: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {got}")
