r"""Turns a collection of pictures and texts into shards of ids that training reads from memory-mapped files.

python -m rebus.data.pretokenize pairs.jsonl --schema text_to_image --model assets/mini --output shards/pairs
python -m rebus.data.pretokenize pairs.jsonl --schema text_to_image --output shards/pairs_of_smollm2 \
    --image_tokenizer assets/mini/image_tokenizer --text_tokenizer runs/smollm2    # to train on top of that base

Every shard is the pure outcome of its records, whoever makes it. A run that was killed goes on where it was: shards
that are there are kept, and all others are made.
"""

import argparse
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rebus.data.bad_data import BadDataConfig, BadDataLog, TooManyBadRecords
from rebus.data.cluster import RayActors
from rebus.data.pretokenizer import PretokenizeConfig, Pretokenizer
from rebus.data.shards import INFO, ShardCounts, ShardsInfo, write_manifest
from rebus.data.source_arguments import add_source_arguments, source_of

_ANY_SIZE_PX = 1
"""The image tokenizer's size takes its place."""


@dataclass(frozen=True)
class Processes:
    """Processes of this machine, each of which makes the next shard that nobody has begun."""

    number: int = 1
    """How many."""

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"processes must be at least 1, got {self.number}")

    def shards(self, own: Pretokenizer) -> Iterator[ShardCounts]:
        """Yields the shards up to the last in turn."""
        if self.number == 1:
            for number in count():
                if not (counts := own.shard(number)).records:
                    return
                yield counts
        numbers = count()
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.number, spawned, _start_worker, (own.config, self.number)) as pool:
            waiting = deque(pool.submit(_work, number) for number in islice(numbers, 2 * self.number))
            try:
                while (counts := waiting.popleft().result()).records:
                    waiting.append(pool.submit(_work, next(numbers)))
                    yield counts
            finally:
                pool.shutdown(cancel_futures=True)


_worker: Pretokenizer | None = None
"""Of a process that makes shards for another."""


def _start_worker(config: PretokenizeConfig, num_processes: int) -> None:
    global _worker
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
    _worker = Pretokenizer(config)


def _work(number: int) -> ShardCounts:
    assert _worker is not None
    return _worker.shard(number)


def pretokenize(config: PretokenizeConfig, workers: Processes | RayActors = Processes()) -> BadDataLog:
    """Makes all shards and their manifest, and returns what became of the records.

    Raises:
        ValueError: if the folder holds shards that something else made, or the source or a tokenizer is not there.
        TooManyBadRecords: if the share of bad records passes its limit.
    """
    own = Pretokenizer(config)
    info = own.info()
    config.output.mkdir(parents=True, exist_ok=True)
    if not (config.output / INFO).exists():
        info.write(config.output)
    elif (made := ShardsInfo.read(config.output)) != info:
        raise ValueError(
            f"{config.output} must be empty or hold shards of the same making, got {_difference(made, info)}"
        )
    log, shards = config.bad_data.build(), []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("shards", total=None)
        for counts in workers.shards(own):
            shards.append(counts)
            log.add(counts.samples, counts.bad)
            progress.update(task, description=f"{len(shards)} shards of {log.num_good:,} samples, bad records: {log}")
    write_manifest(config.output, shards)
    return log


def _difference(made: ShardsInfo, info: ShardsInfo) -> str:
    own, other = asdict(made), asdict(info)
    return "; ".join(f"{name} {own[name]} instead of {other[name]}" for name in own if own[name] != other[name])


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all shards were made, 1 if too many records were bad, 2 if the command line makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser, needs_schema=True)
    parser.add_argument("--model", type=Path, help="saved model whose two tokenizers are used")
    parser.add_argument("--image_tokenizer", type=Path, help="folder of an image tokenizer to use instead")
    text_tokenizer = "folder of a language model, even a stock one, whose text tokenizer to use instead"
    parser.add_argument("--text_tokenizer", type=Path, help=text_tokenizer)
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--records_per_shard", type=int, default=1024, help="records behind each shard")
    parser.add_argument("--max_ids", type=int, default=1024, help="ids of the longest sample that is kept")
    parser.add_argument("--max_bad_rate", type=float, default=0.01, help="share of bad records that is borne")
    parser.add_argument("--processes", type=int, default=1, help="shards made at a time")
    ray = (
        "make the shards on a cluster by actors of Ray Data (of the extra `cluster`), --processes of them with a core "
        "each. All machines must have this package, and must find model, collection, output and the folder of this "
        "call on shared storage at the same place"
    )
    address = (
        "HOST:PORT of the cluster, or `local` for a new one of this machine; by default what RAY_ADDRESS says, the "
        "cluster that this machine is part of, or a new one"
    )
    parser.add_argument("--ray", action="store_true", help=ray)
    parser.add_argument("--ray_address", help=address)
    chosen = parser.parse_args(argv)
    try:
        image_tokenizer, text_tokenizer = _tokenizers(chosen)
        config = PretokenizeConfig(
            source=source_of(chosen, _ANY_SIZE_PX),
            image_tokenizer=image_tokenizer,
            text_tokenizer=text_tokenizer,
            output=chosen.output,
            records_per_shard=chosen.records_per_shard,
            max_ids=chosen.max_ids,
            bad_data=BadDataConfig(max_rate=chosen.max_bad_rate),
        )
        log = pretokenize(config, _workers(chosen))
    except ValueError as error:
        parser.error(str(error))
    except TooManyBadRecords as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{log.num_good:,} samples in {chosen.output}, bad records: {log}")
    return 0


def _tokenizers(chosen: argparse.Namespace) -> tuple[Path, Path]:
    """Returns the folders of image and text tokenizer."""
    image_tokenizer, text_tokenizer = chosen.image_tokenizer, chosen.text_tokenizer
    if chosen.model is not None:
        image_tokenizer = image_tokenizer or chosen.model / "image_tokenizer"
        text_tokenizer = text_tokenizer or chosen.model
    if image_tokenizer is None or text_tokenizer is None:
        raise ValueError("--model must be given, or both --image_tokenizer and --text_tokenizer")
    return image_tokenizer, text_tokenizer


def _workers(chosen: argparse.Namespace) -> Processes | RayActors:
    if chosen.ray:
        return RayActors(number=chosen.processes, address=chosen.ray_address)
    if chosen.ray_address:
        raise ValueError(f"--ray_address must come with --ray, got {chosen.ray_address} alone")
    return Processes(chosen.processes)


if __name__ == "__main__":
    sys.exit(main())
