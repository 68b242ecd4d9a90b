"""The ground a training stands on: processes, signals, device, threads, random state, number format."""

import atexit
import dataclasses
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rebus.train.config import OptimConfig, RunConfig


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    world: int
    local_rank: int

    def barrier(self) -> None:
        """Waits for all the others."""
        if self.world > 1:
            dist.barrier()

    def any(self, *flags: bool) -> list[bool]:
        """Returns for each flag whether it holds in some process, so that all decide alike."""
        return [bool(value) for value in self._reduced([float(flag) for flag in flags], dist.ReduceOp.MAX)]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Returns the means of values over the processes."""
        total = self._reduced(list(values.values()), dist.ReduceOp.SUM)
        return {name: value / self.world for name, value in zip(values, total, strict=True)}

    def _reduced(self, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world == 1:
            return values
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


def start_processes(run: RunConfig) -> Processes:
    """Joins the processes that torchrun or DeepSpeed's launcher started; alone without a launcher.

    Raises:
        ValueError: if the batch does not divide among them.
    """
    rank, world, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    processes = Processes(rank, max(world, 1), local_rank)
    if run.batch_size % processes.world:
        raise ValueError(f"run.batch_size must be a multiple of {processes.world} processes, got {run.batch_size}")
    if uses_deepspeed(run, processes) and not dist.is_initialized():
        _join(pick_device(run, processes))
    return processes


def uses_deepspeed(run: RunConfig, processes: Processes) -> bool:
    """Returns whether DeepSpeed takes the steps of a run."""
    return run.deepspeed or processes.world > 1


def _join(device: torch.device) -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)  # without a launcher DeepSpeed would look for MPI
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    deepspeed.utils.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's business
    # An operator for inference only, which the first start on a CPU would spend 40 s on compiling.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)


def leave_processes() -> None:
    """Leaves the group; under gloo the interpreter will then end at once, with exit code 0.

    Gloo's threads may touch Python while it winds down, which aborts a process that has finished its work.
    """
    if not dist.is_initialized():
        return
    hard = dist.get_backend() == "gloo"
    dist.barrier()
    dist.destroy_process_group()
    if hard:
        atexit.register(_end_now)


def _end_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def deepspeed_config(run: RunConfig, optim: OptimConfig, world: int) -> dict[str, Any]:
    """Returns DeepSpeed's JSON: plain data parallelism in float32, a sharded float32 optimizer for bfloat16 weights."""
    return {
        "train_micro_batch_size_per_gpu": run.batch_size // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.clip_norm,
        "bf16": {"enabled": run.dtype == "bfloat16"},
        "zero_optimization": {"stage": run.sharding},
        "steps_per_print": run.steps + 1,
    }


def pick_device(run: RunConfig, processes: Processes) -> torch.device:
    """Returns the device a run asks for; ``auto`` is the GPU of this process if there is one, else the CPU."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best if run.device == "auto" else run.device)
    return torch.device("cuda", processes.local_rank) if device == torch.device("cuda") else device


def set_threads(run: RunConfig) -> None:
    """Limits the processor threads of this process to those of the run."""
    if run.threads is not None:
        torch.set_num_threads(run.threads)


def seed_step(run: RunConfig, step: int, rank: int) -> None:
    """Sets torch's own random state as a function of the step, so that a resumed run draws what it would have drawn."""
    torch.manual_seed((run.seed * 1_000_003 + step) * 1_003 + rank)


def autocast(run: RunConfig, device: torch.device) -> torch.autocast:
    """Returns the context in which the loss is computed: bfloat16 arithmetic, or none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=run.dtype == "bfloat16")


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turns SIGTERM and Ctrl-C into an event, looked at between steps; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield asked
        return

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {one: signal.signal(one, ask) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def to_device(batch: Any, device: torch.device) -> Any:
    """Returns a batch with its tensors on a device; dataclasses, tuples, lists and dicts are looked into."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        moved = {name: to_device(value, device) for name, value in values.items()}
        return batch if all(moved[name] is value for name, value in values.items()) else type(batch)(**moved)
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch
