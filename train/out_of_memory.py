"""What to tell who runs out of memory: where it went, by the estimate, and what to change."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from rebus.train.config import RunConfig
from rebus.train.memory import ModelSizes, estimate, gibibytes


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether torch found no memory on an accelerator or in the host."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


def advice(model: nn.Module, run: RunConfig, world: int, row_length: int, device: torch.device) -> str:
    """Returns what to tell who ran out of memory: the estimate, and each change with what it then comes to.

    Activations and logits are reckoned for language models only, which have a ``row_length``.
    """
    sizes = ModelSizes.of(model)
    need = estimate(sizes, run, world, row_length)
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    named = ", ".join(f"{name} {gibibytes(getattr(need, name))}" for name in parts if getattr(need, name))
    changes = []
    can_recompute = getattr(model, "supports_gradient_checkpointing", False)
    before = run if can_recompute else replace(run, activation_checkpointing=True)
    for changed in _remedies(before, world, device.type == "cpu"):
        left = gibibytes(estimate(sizes, changed, world, row_length).device)
        changes.append(f"{_difference(before, changed)} ({left})")
        before = changed
    changes = changes or ["shorter rows, a smaller model or more processes"]
    return (
        f"out of memory: a step needs an estimated {gibibytes(need.device)} in each process ({named}). "
        f"What makes it less, each with those before it: {', '.join(changes)}"
    )


def _remedies(run: RunConfig, world: int, device_is_host: bool) -> Iterator[RunConfig]:
    """Yields the run with less and less memory: recomputing, single rows, more shards, and the host's memory."""
    if not run.activation_checkpointing:
        run = replace(run, activation_checkpointing=True)
        yield run
    if run.batch_size > world * run.accumulation:
        run = replace(run, accumulation=run.batch_size // world)
        yield run
    highest = 2 if run.ema is not None else 3
    for stage in range(run.sharding + 1, highest + 1 if world > 1 else 0):
        run = replace(run, zero_stage=stage)
        yield run
    if not run.offload and not device_is_host:
        yield replace(run, offload=True, deepspeed=run.deepspeed or world == 1, zero_stage=max(2, run.sharding))


def _difference(before: RunConfig, after: RunConfig) -> str:
    """Returns the flags that lead from one run to another."""
    names = ("activation_checkpointing", "accumulation", "deepspeed", "zero_stage", "offload")
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return " ".join(f"--run.{name} {str(getattr(after, name)).lower()}" for name in changed)
