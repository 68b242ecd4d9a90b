"""Shards made by the machines of a cluster, with Ray Data: shard numbers go to actors, counts come back.

How many shards a collection makes is known only once one comes out empty. Numbers are therefore sent out in rounds,
each twice as long as the one before; actors start anew in each.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

from rebus.data.pretokenizer import PretokenizeConfig, Pretokenizer
from rebus.data.shards import ShardCounts

_FIRST_SHARDS_AN_ACTOR = 16
"""Enough work to be worth the start of an actor, few enough that empty numbers cost next to nothing."""


@dataclass(frozen=True, kw_only=True)
class RayActors:
    """Actors of Ray Data, each of which holds both tokenizers and makes shards; a lost one is started again.

    Each machine must have the package, and must find all folders at the same place, also that from which the run is
    started.
    """

    number: int = 1
    """How many work at a time if the cluster has a core for each."""
    address: str | None = None
    """HOST:PORT of the cluster, or ``local``: a new one of this machine alone. By default Ray looks: at RAY_ADDRESS,
    then for a cluster that this machine is part of, else it starts one of this machine."""

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"actors must be at least 1, got {self.number}")

    def shards(self, own: Pretokenizer) -> Iterator[ShardCounts]:
        """Yields the shards up to the last in turn.

        Raises:
            ValueError: if Ray is not installed, there is no cluster at the address, or the source is not there.
        """
        numbers, ended = range(_FIRST_SHARDS_AN_ACTOR * self.number), False
        with _joined(self.address):
            while not ended:
                for counts in self._counts(own.config, numbers):
                    if counts.records:
                        yield counts
                    else:
                        ended = True
                numbers = range(numbers.stop, numbers.stop + 2 * len(numbers))

    def _counts(self, config: PretokenizeConfig, numbers: range) -> Iterator[ShardCounts]:
        """Yields what came of each number, in turn."""
        import ray.data

        actors = ray.data.ActorPoolStrategy(size=self.number)
        # One number a block, since a block is what an actor is given at a time.
        dataset = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
        maker = cast(Any, _Maker)  # Ray's type of it leaves classes out
        made = dataset.map(maker, fn_constructor_args=(config, os.getcwd()), compute=actors)
        made.context.execution_options.preserve_order = True
        made.context.enable_progress_bars = False
        for row in made.iter_rows():
            if row["error"]:
                raise ValueError(row["error"])
            yield ShardCounts(**json.loads(row["counts"]))


class _Maker:
    """Makes shards in a process of some machine.

    What is wrong with a folder or file comes back as text: Ray wraps what is raised in errors of its own, pages long.
    """

    def __init__(self, config: PretokenizeConfig, folder: str):
        self._config, self._folder = config, folder

    @cached_property
    def _own(self) -> Pretokenizer:
        os.chdir(self._folder)  # paths may be relative
        return Pretokenizer(self._config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"counts": json.dumps(asdict(self._own.shard(row["item"]))), "error": ""}
        except (ValueError, OSError) as error:
            return {"counts": "", "error": str(error)}


@contextmanager
def _joined(address: str | None) -> Iterator[None]:
    """Joins a cluster, or starts one, for as long as shards are made; one that the caller has joined stays joined."""
    try:
        import ray
        import ray.data  # which sets the level of its logger
    except ModuleNotFoundError as error:
        raise ValueError("making shards on a cluster must have Ray: pip install 'rebus-lm[cluster]'") from error
    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ValueError(f"ray_address must be that of a running cluster, got {address} ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()
