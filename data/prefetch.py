"""Batches made ahead by a thread, while the model learns from those before."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rebus.data.packing import PackedBatch
from rebus.data.shard_loading import ShardLoader


class Prefetched:
    """A loader of shards that is some steps ahead of its user, who need not know."""

    def __init__(self, loader: ShardLoader, depth: int = 2):
        """Takes the loader, which nobody else may use from then on, and how many steps to be ahead, at most 4."""
        assert 0 < depth <= 4
        self._loader, self._depth = loader, depth
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._made: dict[tuple[int, int, int], Future[PackedBatch]] = {}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> PackedBatch:
        """Returns rows ``rank``, ``rank + world``, ... of the batch of a step, and has those of the next steps made.

        Raises:
            ValueError: if the rows cannot be shared equally.
        """
        for ahead in range(step, step + self._depth + 1):
            if (key := (ahead, rank, world)) not in self._made:
                self._made[key] = self._thread.submit(self._loader.batch, *key)
        return self._made.pop((step, rank, world)).result()

    def state(self, step: int) -> dict[str, Any]:
        """Returns where the loader stands before a step, as JSON."""
        return self._thread.submit(self._loader.state, step).result()

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where the loader was that gave the state; no batch may have been asked for.

        Raises:
            ValueError: if it had samples of other lengths, other weights or lengths of a row, or another seed.
        """
        assert not self._made
        self._loader.load_state(state)

    def __str__(self) -> str:
        return f"{self._depth} steps ahead\n`- " + str(self._loader).replace("\n", "\n   ")
