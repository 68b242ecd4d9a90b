"""Batches from shards: mixed, shuffled, packed, every sample once an epoch, on any number of ranks.

All ranks go through the same order and plan the same rows, for which the lengths of the samples are enough; each reads
the ids of its own rows alone. So where a run stands is a few numbers that hold for any number of ranks.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any
from zlib import crc32

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int32

from rebus.data.loading import shared_rows
from rebus.data.packing import PackedBatch
from rebus.data.rendering import NOT_TRAINED
from rebus.data.shard_order import Place, ShardOrder
from rebus.data.shards import Shards

_NUM_WAITING = 64
"""Samples among which the next one of a row is chosen."""

_NUM_KEPT = 8
"""Steps that may be asked for again."""
_FIRST = (0, 0)

_Waiting = tuple[int, int, Place]
"""The length of a sample, how many were drawn before it, and its place."""


@dataclass(frozen=True)
class _Standing:
    """What decides all rows to come."""

    waiting: list[_Waiting]
    order: dict[str, Any]


class ShardLoader:
    """Draws samples from shards, each folder as often as its weight says, and packs them into rows.

    A row starts with the sample that waits longest and goes on with the longest one that still fits, so that little of
    it is padding and nothing waits for more than 64 rows.
    """

    def __init__(self, folders: Sequence[Shards], weights: Sequence[float], *, rows: int, length: int, seed: int):
        """Takes the shards and the size of a batch.

        Args:
            folders: Shards made by the same tokenizers.
            weights: How often a sample is drawn from each folder, relative to the others.
            rows: Rows of a batch over all ranks.
            length: Ids of a row.
            seed: Another seed gives another order.

        Raises:
            ValueError: if there are not as many weights as folders, one is not positive, a folder holds no samples or
                such as are longer than a row, or folders were made by different tokenizers.
        """
        if len(weights) != len(folders) or not folders or not all(0 < weight < math.inf for weight in weights):
            got = list(weights)
            raise ValueError(f"weights must be positive and one for each of {len(folders)} folders, got {got}")
        first = folders[0].info
        for shards in folders:
            shards.check_made_by(image_tokenizer=first.image_tokenizer, text_tokenizer=first.text_tokenizer)
            if not len(shards):
                raise ValueError(f"{shards.folder} must hold at least 1 sample, got none")
            if shards.info.max_ids > length:
                raise ValueError(f"length must be at least the {shards.info.max_ids} ids of a sample, got {length}")
        self.folders, self.weights = list(folders), [float(weight) for weight in weights]
        self.rows, self.length, self.seed = rows, length, seed
        self.step = 0
        """The next to be planned."""
        self._planned: dict[int, tuple[_Standing, list[list[Place]]]] = {}
        """Where the loader stood before the last steps, and their rows."""
        self._order = ShardOrder([len(shards) for shards in folders], weights, seed)
        self._waiting: list[_Waiting] = []
        """Samples that wait for a row, shortest first."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> PackedBatch:
        """Returns rows ``rank``, ``rank + world``, ... of the batch of a step, which is not long before the latest.

        Raises:
            ValueError: if the rows cannot be shared equally.
        """
        own = shared_rows(self.rows, rank, world)
        while self.step <= step:
            self._planned[self.step] = self._standing(), [self._plan_row() for _ in range(self.rows)]
            self._planned.pop(self.step - _NUM_KEPT, None)
            self.step += 1
        rows = self._planned[step][1]
        return self._filled([rows[row] for row in own])

    def state(self, step: int) -> dict[str, Any]:
        """Returns where the loader stands before a step, as JSON: for any number of ranks, and of rows in a batch."""
        standing = self._standing() if step == self.step else self._planned[step][0]
        waiting = [[drawn, *place] for _, drawn, place in standing.waiting]
        return {"of": self._identity(), "step": step, "order": standing.order, "waiting": waiting}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where the loader was that gave the state.

        Raises:
            ValueError: if it had samples of other lengths, other weights or lengths of a row, or another seed.
        """
        if state["of"] != self._identity():
            raise ValueError(f"shards must be as where the run stopped, {state['of']}, got {self._identity()}")
        self.step, self._planned = state["step"], {}
        self._order.load_state(state["order"])
        places = ((drawn, (folder, sample)) for drawn, folder, sample in state["waiting"])
        self._waiting = sorted((self._length(place), drawn, place) for drawn, place in places)

    def __str__(self) -> str:
        total, read = math.fsum(self.weights), self._order.num_read()
        lines = [
            f"{self.rows} rows of {self.length} ids",
            f"`- packed: of {len(self._waiting)} samples that wait, the longest that fits",
            f"   `- mixed and shuffled with seed {self.seed}: {self._order.num_taken:,} samples so far",
        ]
        for number, (shards, weight) in enumerate(zip(self.folders, self.weights, strict=True)):
            branch = "`-" if number == len(self.folders) - 1 else "|-"
            size = f"{len(shards):,} samples of {shards.num_ids:,} ids, read {read[number] / len(shards):.2f} times"
            lines.append(f"      {branch} {weight / total:.1%} {shards.folder}: {size}")
        return "\n".join(lines)

    def _identity(self) -> dict[str, Any]:
        """Returns all that decides the order, as JSON."""
        sizes = [[len(shards), shards.num_ids, crc32(shards.lengths.tobytes())] for shards in self.folders]
        return {"sizes": sizes, "weights": self.weights, "length": self.length, "seed": self.seed}

    def _standing(self) -> "_Standing":
        return _Standing(list(self._waiting), self._order.state())

    def _length(self, place: Place) -> int:
        folder, sample = place
        return self.folders[folder].lengths.item(sample)

    def _draw(self) -> None:
        drawn, place = self._order.num_taken, self._order.take()
        insort(self._waiting, (self._length(place), drawn, place))

    def _plan_row(self) -> list[Place]:
        """Returns the samples of the next row."""
        waiting = self._waiting
        while len(waiting) < _NUM_WAITING:
            self._draw()
        row, space = [], self.length
        index = waiting.index(min(waiting, key=itemgetter(1)))  # the oldest
        while index >= 0:
            size, _, place = waiting.pop(index)
            row.append(place)
            space -= size
            self._draw()
            index = bisect_left(waiting, (space + 1, 0, _FIRST)) - 1
        return row

    def _filled(self, rows: list[list[Place]]) -> PackedBatch:
        """Returns the rows with their samples."""
        samples = self._samples([place for row in rows for place in row])
        vocabulary = self.folders[0].vocabulary
        pieces, sizes, documents = [], [], []
        for row in rows:
            own = [samples[place] for place in row]
            lengths = [len(one) for one in own]
            padding = self.length - sum(lengths)
            pieces += [*own, np.full(padding, ~vocabulary.pad, dtype=np.int32)]
            sizes += [*lengths, padding]
            documents += [*range(len(row)), -1]
        marked = np.concatenate(pieces).astype(np.int64)
        is_target = marked >= 0
        ids = marked ^ (marked >> 63)  # the complement of what is negative
        document = np.repeat(documents, sizes)
        position = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns = {
            "ids": ids,
            "targets": np.where(is_target, marked, NOT_TRAINED),
            "modality": (ids >= vocabulary.control_range[1]).astype(np.int64),
            "documents": document,
            "positions": np.where(document >= 0, position, 0),
        }
        by_row = {
            name: rearrange(column, "(rows length) -> rows length", rows=len(rows)) for name, column in columns.items()
        }
        return PackedBatch(**{name: torch.from_numpy(column) for name, column in by_row.items()})

    def _samples(self, places: list[Place]) -> dict[Place, Int32[np.ndarray, " ids"]]:
        """Returns the marked ids of the samples at some places."""
        found = {}
        for number, shards in enumerate(self.folders):
            own = [place for place in places if place[0] == number]
            samples = np.array([sample for _, sample in own], dtype=np.int64)
            found.update(zip(own, shards.marked(samples), strict=True))
        return found
