"""What ``--dry_run`` shows instead of training: config, DeepSpeed's JSON, memory, and the command that trains."""

import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from rebus.model.language_model import DOCUMENT_ATTENTION
from rebus.train.command_line import dumps
from rebus.train.config import RunConfig
from rebus.train.memory import ModelSizes, estimate, gibibytes
from rebus.train.parameter_groups import freeze
from rebus.train.runtime import Processes, check_fits, deepspeed_config, uses_deepspeed

PROCESSES_OF_A_NODE = 8
_COLUMNS = ("weights", "gradients", "optimizer", "activations", "recomputed", "logits", "in all", "host")


def show(module: str, argv: list[str] | None, config: Any, model: PreTrainedModel, num_processes: int | None) -> None:
    """Prints what a training would be, and writes and allocates nothing.

    Args:
        module: of the command.
        argv: its flags; those of this process by default.
        config: the stage's whole config, with its ``run``, ``optim``, ``row_length`` and ``by_level``.
        model: what would train, on the meta device.
        num_processes: for which the training is planned; by default those that a launcher has started.

    Raises:
        ValueError: if the run does not fit the processes, or its optimizer the model.
    """
    run, world = config.run, num_processes or int(os.environ.get("WORLD_SIZE", "1"))
    if world < 1:
        raise ValueError(f"--dry_run must be of at least 1 process, got {world}")
    check_fits(run, Processes(0, world, 0))
    freeze(model, config.optim)
    model.set_attn_implementation("sdpa" if config.by_level else DOCUMENT_ATTENTION)  # as in training
    if int(os.environ.get("RANK", "0")) > 0:
        return
    print(dumps(config))
    if uses_deepspeed(run, Processes(0, world, 0)):
        print("\nDeepSpeed:", json.dumps(deepspeed_config(run, config.optim, world), indent=2))
    print()
    Console(width=120).print(_memory_table(ModelSizes.of(model), run, world, config.row_length))
    print(f"\n{launch_command(module, _without_dry_run(argv or sys.argv[1:]), world)}")


def launch_command(module: str, flags: list[str], world: int) -> str:
    """Returns the command that starts a training in a number of processes, eight a node where that divides them."""
    if world == 1:
        return shlex.join(["python", "-m", module, *flags])
    each = world if world <= PROCESSES_OF_A_NODE else math.gcd(world, PROCESSES_OF_A_NODE)
    if world == each:
        return shlex.join(["torchrun", "--standalone", "--nproc_per_node", str(each), "-m", module, *flags])
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "FIRST_NODE:29500"]
    nodes = ["--nnodes", str(world // each), "--nproc_per_node", str(each)]
    return shlex.join(["torchrun", *nodes, *meeting, "-m", module, *flags]) + "    # on every node"


def _memory_table(sizes: ModelSizes, run: RunConfig, world: int, row_length: int) -> Table:
    """Returns a row for each way to train, that of the run marked."""
    title = f"Memory of each of {world} processes, {sizes.weights:,} weights, {sizes.trainable:,} of them trainable"
    table = Table("", *(f"{name}" for name in _COLUMNS), title=title)
    asked_for = _name(run, world)
    for way in _ways(run, world):
        need = estimate(sizes, way, world, row_length)
        kept, recomputed = (
            estimate(sizes, replace(way, activation_checkpointing=value), world, row_length).activations
            for value in (False, True)
        )
        states = (need.weights, need.gradients, need.optimizer)
        name = _name(way, world)
        numbers = (gibibytes(value) for value in (*states, kept, recomputed, need.logits, need.device, need.host))
        table.add_row(f"> {name}" if name == asked_for else name, *numbers, style="bold" if name == asked_for else None)
    return table


def _ways(run: RunConfig, world: int) -> Iterator[RunConfig]:
    """Yields the run plainly, if it may be, and at each ZeRO stage with and without offloading."""
    base = replace(run, deepspeed=False, offload=False)
    if world == 1:
        yield base
    for stage in range(1 if run.dtype == "bfloat16" else 0, 3 if run.ema is not None else 4):
        for offload in (False, True) if stage > 0 else (False,):
            yield replace(base, deepspeed=True, zero_stage=stage, offload=offload)


def _name(run: RunConfig, world: int) -> str:
    if not uses_deepspeed(run, Processes(0, world, 0)):
        return "one process"
    return f"ZeRO {run.sharding}{', offload' if run.offload else ''}"


def _without_dry_run(flags: list[str]) -> list[str]:
    kept: list[str] = []
    for index, flag in enumerate(flags):
        is_number_of_it = index > 0 and flags[index - 1] == "--dry_run" and flag.isdigit()
        if not flag.startswith("--dry_run") and not is_number_of_it:
            kept.append(flag)
    return kept
