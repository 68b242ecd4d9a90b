"""What every training needs to be told: the run and the optimizer, as frozen dataclasses."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rebus.train.command_line import parse as parse


@dataclass(frozen=True, kw_only=True)
class LinearFall:
    """The rate falls to zero in a straight line: with the rise and the level part, a trapezoid."""

    def share(self, step: int, num_steps: int, warmup_steps: int, cooldown_steps: int) -> float:
        """Returns the share of the full rate that the fall leaves at a step; above 1 before it begins."""
        del warmup_steps  # where rise and fall cross, the lower one counts
        return (num_steps - step) / (cooldown_steps + 1)


@dataclass(frozen=True, kw_only=True)
class CosineFall:
    """The rate falls as half a cosine; with ``cooldown_fraction`` 1, from the end of the warm-up on.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    https://arxiv.org/abs/1608.03983.
    Differs: no restarts.
    """

    lowest: float = 0.0
    """Share of the full rate that is reached after the last step, in [0, 1]."""

    def __post_init__(self) -> None:
        _check(0 <= self.lowest <= 1, "optim.fall.lowest", "in [0, 1]", self.lowest)

    def share(self, step: int, num_steps: int, warmup_steps: int, cooldown_steps: int) -> float:
        """Returns the share of the full rate that the fall leaves at a step; 1 before it begins."""
        start = max(warmup_steps, num_steps - cooldown_steps)
        course = max(0, step - start) / max(1, num_steps - start)
        return self.lowest + (1 - self.lowest) * (1 + math.cos(math.pi * course)) / 2


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and the course of its learning rate: up, level, down."""

    lr: float
    """Learning rate on the level part."""
    warmup_steps: int = 100
    """Steps over which the rate rises from zero."""
    cooldown_fraction: float = 0.2
    """Last share of all steps over which the rate falls, in [0, 1]; 0 keeps it level to the end."""
    fall: LinearFall | CosineFall = LinearFall()
    """How it falls."""
    rates: dict[str, float] = field(default_factory=dict)
    """What the rate is multiplied with in parts of the model, as ``{"model.embed_tokens": 0.1}``."""
    frozen: tuple[str, ...] = ()
    """Parts of the model that do not learn, as ``["model.layers.0"]``."""
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
        for part, factor in self.rates.items():
            _check(factor > 0, f"optim.rates[{part}]", "positive (a part that must not learn is frozen)", factor)

    def learning_rate(self, step: int, num_steps: int) -> float:
        """Returns the rate of a step, counted from 0, of a run of ``num_steps``; never exactly zero."""
        cooldown_steps = math.ceil(self.cooldown_fraction * num_steps)
        rising = (step + 1) / (self.warmup_steps + 1)
        falling = self.fall.share(step, num_steps, self.warmup_steps, cooldown_steps)
        return self.lr * min(1.0, rising, falling)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long a training runs, on what, and what it leaves behind."""

    output: Path
    """Folder for checkpoints, metrics, samples and the exported model."""
    steps: int
    """Optimizer steps in all; a finished run given more goes on."""
    batch_size: int
    """Rows of one step, over all processes and micro-batches together."""
    accumulation: int = 1
    """Micro-batches whose gradients add up to those of a step: less memory, the same step."""
    activation_checkpointing: bool = False
    """Whether layers compute their activations again in the backward pass instead of keeping them."""
    seed: int = 0
    """Decides the data and every random draw."""
    device: str = "auto"
    """A torch device; auto takes an accelerator if there is one."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the arithmetic; weights stay float32 except under DeepSpeed with bfloat16."""
    spike_deviations: float = 8.0
    """Standard deviations above the mean of the last losses from which on a batch is written down as suspicious."""
    compile: bool = False
    """Whether the loss, or the blocks of a language model, go through torch.compile."""
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
    """What DeepSpeed shards: 0 nothing, 1 optimizer, 2 gradients, 3 weights too. By default 0, and 1 for bfloat16."""
    offload: bool = False
    """Whether what DeepSpeed shards of the optimizer, and at stage 3 of the weights, waits in the host's memory."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulation",
            "log_every",
            "save_every",
            "save_minutes",
            "spike_deviations",
        ):
            _check(getattr(self, name) > 0, f"run.{name}", "positive", getattr(self, name))
        for name in ("threads", "validate_every", "max_minutes"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"run.{name}", "positive", value)
        _check(self.ema is None or 0 <= self.ema < 1, "run.ema", "in [0, 1)", self.ema)
        # DeepSpeed's bfloat16 optimizer of stage 0 starts AdamW one step late: another training.
        lowest = 1 if self.dtype == "bfloat16" else 0
        _check(lowest <= self.sharding <= 3, "run.zero_stage", f"in [{lowest}, 3] for {self.dtype}", self.zero_stage)
        _check(self.ema is None or self.sharding < 3, "run.ema", "null where run.zero_stage is 3", self.ema)
        _check(not self.offload or self.sharding > 0, "run.offload", "false where nothing is sharded", self.offload)

    @property
    def sharding(self) -> int:
        """The ZeRO stage, with the default decided."""
        return self.zero_stage if self.zero_stage is not None else int(self.dtype == "bfloat16")


def _check(holds: bool, name: str, wanted: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {got}")
