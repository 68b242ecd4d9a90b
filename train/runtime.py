"""The ground a training stands on: processes, signals, device, threads, random state, number format."""

import atexit
import dataclasses
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rebus.train.config import OptimConfig, RunConfig

Told = TypeVar("Told")


@runtime_checkable
class HasBlocksToCompile(Protocol):
    """A model that may hold more than ``torch.compile`` can take as one program."""

    def blocks_to_compile(self) -> list[nn.Module]:
        """Returns the parts to compile each by itself; none if all of the loss can be compiled at once."""
        ...


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

    def told(self, tell: Callable[[], Told]) -> Told:
        """Returns what the first process finds; an error of its own is raised in all of them."""
        if self.world == 1:
            return tell()
        found: list[Any] = [None]
        if self.rank == 0:
            try:
                found = [tell()]
            except (ValueError, OSError) as error:
                found = [error]
        dist.broadcast_object_list(found)
        if isinstance(found[0], ValueError | OSError):
            raise found[0]
        return found[0]

    def gathered(self, own: Told) -> list[Told]:
        """Returns what each process has, those of the first process first; every process must call it."""
        if self.world == 1:
            return [own]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, own)
        return found

    def share_targets(self, parts: Sequence[Any]) -> None:
        """Gives all micro-batches of a step, in all processes, the mean of their numbers of targets to divide by.

        Gradients are averaged over micro-batches and processes as equals, whatever the number of targets in each.
        """
        counted = [part.num_targets for part in parts if hasattr(part, "num_targets")]
        if counted:
            total = torch.stack(counted).sum(0)
            shared = torch.tensor(self._reduced(total.flatten().tolist(), dist.ReduceOp.SUM)).view_as(total)
            for num_targets in counted:
                num_targets.copy_(shared / (len(parts) * self.world))

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
        ValueError: if the batch does not divide among them, or something shall be offloaded without DeepSpeed.
    """
    processes = launched_processes()
    check_fits(run, processes)
    if uses_deepspeed(run, processes) and not dist.is_initialized():
        _join(pick_device(run, processes))
    return processes


def launched_processes() -> Processes:
    """Returns the processes that a launcher started; this one alone without a launcher."""
    rank, world, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Processes(rank, max(world, 1), local_rank)


def loaded_dtype(run: RunConfig, processes: Processes) -> torch.dtype:
    """Returns the number format to load weights in: bfloat16 where DeepSpeed would round them to it at once."""
    rounded = run.dtype == "bfloat16" and uses_deepspeed(run, processes)
    return torch.bfloat16 if rounded else torch.float32


def check_fits(run: RunConfig, processes: Processes) -> None:
    """Checks what a run asks for against the number of processes.

    Raises:
        ValueError: if the batch does not divide among them, weights in bfloat16 shall be averaged, which would be
            rounded each time, or something shall be offloaded without DeepSpeed.
    """
    num_parts = processes.world * run.accumulation
    if run.batch_size % num_parts:
        each = f" with {run.accumulation} micro-batches each" if run.accumulation > 1 else ""
        raise ValueError(
            f"run.batch_size must be a multiple of {processes.world} processes{each}, got {run.batch_size}"
        )
    if run.ema is not None and run.dtype == "bfloat16" and uses_deepspeed(run, processes):
        raise ValueError(f"run.ema must be none where DeepSpeed trains weights in bfloat16, got {run.ema}")
    if run.offload and not uses_deepspeed(run, processes):
        raise ValueError("run.offload must be false in one process without run.deepspeed, got True")


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
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": run.batch_size // (world * run.accumulation),
        "gradient_accumulation_steps": run.accumulation,
        # At stage 0 the updater clips by itself, for DeepSpeed would clip by a norm that is not finite and not tell.
        "gradient_clipping": optim.clip_norm if run.sharding > 0 else 0.0,
        "bf16": {"enabled": run.dtype == "bfloat16"},
        "zero_optimization": {"stage": run.sharding},
        "steps_per_print": run.steps + 1,
    }
    if run.offload:
        # Its own optimizer for the host is compiled at the first start; torch's AdamW does the same arithmetic.
        config["zero_force_ds_cpu_optimizer"] = False
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        if run.sharding == 3:
            config["zero_optimization"]["offload_param"] = {"device": "cpu"}
    return config


def pick_device(run: RunConfig, processes: Processes) -> torch.device:
    """Returns the device a run asks for; ``auto`` is the GPU of this process if there is one, else the CPU."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(best if run.device == "auto" else run.device)
    return torch.device("cuda", processes.local_rank) if device == torch.device("cuda") else device


def set_threads(run: RunConfig) -> None:
    """Limits the processor threads of this process to those of the run."""
    if run.threads is not None:
        torch.set_num_threads(run.threads)


def compiled(model: nn.Module, loss: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the loss of a model for ``torch.compile``; the blocks of a language model are compiled each by itself.

    All of its loss would be compiled anew for each number of documents in a batch. Other models may name such blocks.
    """
    blocks = _blocks_to_compile(model)
    if not blocks:
        return torch.compile(loss)
    for block in blocks:
        block.compile()
    return loss


def _blocks_to_compile(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, HasBlocksToCompile):
        return model.blocks_to_compile()
    layers = getattr(getattr(model, "model", None), "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def recompute_activations(model: nn.Module) -> None:
    """Lets a model keep only the inputs of its layers while it trains; the backward pass computes the rest again.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174.

    Raises:
        ValueError: if the model is none of ``transformers`` that can.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        name = type(model).__name__
        raise ValueError(f"run.activation_checkpointing must be false for a {name}, which has no such layers, got True")
    # transformers renamed it within version 5; where both names are known, the old one warns.
    name = "activation_checkpointing_enable"
    enable: Any = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})


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
