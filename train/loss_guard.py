"""What watches the loss: a batch that makes it jump or break is written down, with where the data stood before it."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

NUM_DUMPS = 20
"""Most batches that are written down in one process, so that a run that broke does not fill the disk."""
_MEMORY = 0.98
_NUM_BEFORE = 50


class LossGuard:
    """The running mean and deviation of the loss, and what lies far above it.

    Args:
        folder: where batches are written.
        deviations: how many standard deviations above the mean a loss is a spike.
    """

    def __init__(self, folder: Path, deviations: float) -> None:
        self.folder, self.deviations = folder, deviations
        self.mean = self.variance = 0.0
        self.num_seen = self.num_dumps = 0

    def is_spike(self, loss: float) -> bool:
        """Returns whether a loss is far above those before it, and counts it among them.

        A spike counts as no more than what would just not be one. The first 50 losses are none.
        """
        # A loss that hardly moves at all is no reason to call its noise spikes.
        limit = self.mean + self.deviations * max(math.sqrt(self.variance), 1e-3 * abs(self.mean))
        spike = self.num_seen >= _NUM_BEFORE and loss > limit
        counted = limit if spike else loss
        self.num_seen += 1
        memory = min(_MEMORY, 1 - 1 / self.num_seen)
        change = counted - self.mean
        self.mean += (1 - memory) * change
        self.variance = memory * (self.variance + (1 - memory) * change * change)
        return spike

    def dump(self, step: int, rank: int, parts: Sequence[Any], why: dict[str, Any]) -> Path | None:
        """Writes a process's micro-batches of a step, and why; returns where, or nothing if there are enough."""
        if self.num_dumps == NUM_DUMPS:
            return None
        self.num_dumps += 1
        folder = self.folder / f"step-{step}-rank-{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, part in enumerate(parts):
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(part, "")}
            safetensors.torch.save_file(tensors, folder / f"part-{number}.safetensors")
        (folder / "why.json").write_text(json.dumps({"step": step, "rank": rank, **why}, indent=2) + "\n")
        return folder

    def state(self) -> dict[str, float]:
        """Returns what was seen so far, as JSON."""
        return {"mean": self.mean, "variance": self.variance, "num_seen": self.num_seen}

    def load_state(self, state: dict[str, float]) -> None:
        """Goes on from what ``state`` returned."""
        self.mean, self.variance, self.num_seen = state["mean"], state["variance"], int(state["num_seen"])


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a batch by their paths within it, such as ``packed.ids``."""
    if isinstance(value, Tensor):
        yield name or "batch", value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _tensors(one, f"{name}.{key}".lstrip("."))
    elif isinstance(value, tuple | list):
        for number, one in enumerate(value):
            yield from _tensors(one, f"{name}.{number}".lstrip("."))
