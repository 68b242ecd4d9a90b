"""Turns a collection of pictures and texts into shards of ids that training reads from memory-mapped files.

python -m rebus.data.pretokenize pairs.jsonl --schema text_to_image --model assets/mini --output shards/pairs

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
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rebus.data.bad_data import BadDataConfig, BadDataLog, BadRecord, Position, TooManyBadRecords
from rebus.data.records import Record
from rebus.data.rendering import Rendered, render
from rebus.data.samples import Sample, pictures, with_tokens
from rebus.data.shards import INFO, Shard, ShardCounts, ShardsInfo, shard_path, write_manifest, write_shard
from rebus.data.source_arguments import add_source_arguments, source_of
from rebus.data.sources import Source
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import Tokens
from rebus.tokenizers.vocabulary import Vocabulary

_PICTURES_AT_ONCE = 64
_ANY_SIZE_PX = 1
"""The image tokenizer's size takes its place."""


@dataclass(frozen=True, kw_only=True)
class PretokenizeConfig:
    """What is turned into shards, by what, and where they go."""

    source: Source
    """The samples; pictures are fitted to the image tokenizer's size, whatever its links say."""
    image_tokenizer: Path
    """Folder of the image tokenizer."""
    text_tokenizer: Path
    """Folder of a language model with its text tokenizer."""
    output: Path
    """Folder of the shards."""
    records_per_shard: int = 1024
    """Records behind each shard."""
    max_ids: int = 1024
    """Ids of the longest sample that is kept."""
    bad_data: BadDataConfig = BadDataConfig()
    """How many bad records are borne; each shard's are written beside it."""
    processes: int = 1
    """How many shards are made at a time."""

    def __post_init__(self) -> None:
        for name in ("records_per_shard", "max_ids", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Pretokenizer:
    """Makes the shards of one collection, any of them, in any order."""

    def __init__(self, config: PretokenizeConfig):
        self.image_tokenizer = ImageTokenizer.load(config.image_tokenizer)
        self.text_tokenizer = TextTokenizer.load(config.text_tokenizer)
        self.vocabulary = Vocabulary(self.text_tokenizer.num_pieces, self.image_tokenizer.layout)
        links = replace(config.source.links, size_px=self.image_tokenizer.config.image_size_px)
        self.config, self.source = config, replace(config.source, links=links)
        self._records: Iterator[tuple[Record | BadRecord, Position]] = iter(())
        self._next: int | None = None
        """Number of the record that ``_records`` yields next."""

    def info(self) -> ShardsInfo:
        """Returns what the shards are made of."""
        return ShardsInfo(
            image_tokenizer=self.image_tokenizer.hash,
            text_tokenizer=self.text_tokenizer.hash,
            vocabulary=self.vocabulary.to_dict(),
            source=str(self.source.records),
            schema=self.source.schema,
            records_per_shard=self.config.records_per_shard,
            max_ids=self.config.max_ids,
        )

    def shard(self, number: int) -> ShardCounts:
        """Returns the counts of a shard, which it makes if it is not there; no records if it lies behind the last."""
        path = shard_path(self.config.output, number)
        if path.exists():
            return Shard(path).counts
        quarantine = path.with_suffix(".bad.jsonl")
        quarantine.unlink(missing_ok=True)
        log = BadDataConfig(quarantine=quarantine, max_rate=1.0).build()
        rendered: list[Rendered] = []
        samples: list[tuple[Sample, Position]] = []
        for record, position in self._records_of(number):
            try:
                samples.append((self.source.sample(record), position))
            except BadRecord as error:
                log.skip(error, position)
            if sum(len(pictures(sample)) for sample, _ in samples) >= _PICTURES_AT_ONCE:
                rendered += self._rendered(samples, log)
                samples = []
        rendered += self._rendered(samples, log)
        log.close()
        if not rendered and not log.bad:
            return ShardCounts(0, 0, {})
        return write_shard(path, rendered, log.bad)

    def _records_of(self, number: int) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Returns the records behind a shard; where they come after those read last, reading goes on from there."""
        start = number * self.config.records_per_shard
        if self._next is None or start < self._next:
            self._records = self.source.records.read(start)
        else:
            deque(islice(self._records, start - self._next), maxlen=0)
        self._next = start + self.config.records_per_shard
        return islice(self._records, self.config.records_per_shard)

    def _rendered(self, samples: list[tuple[Sample, Position]], log: BadDataLog) -> list[Rendered]:
        """Returns the ids of samples that are not too long."""
        codes = iter(self._codes([sample for sample, _ in samples]))
        found = []
        for sample, position in samples:
            coded = with_tokens(sample, list(islice(codes, len(pictures(sample)))))
            rendered = render(coded, self.text_tokenizer, self.vocabulary)
            if len(rendered.ids) <= self.config.max_ids:
                found.append(rendered)
                continue
            message = f"a sample must have at most {self.config.max_ids} ids, got {len(rendered.ids)}"
            log.skip(BadRecord("too_long", message), position)
        return found

    def _codes(self, samples: list[Sample]) -> list[Tokens]:
        pixels = [picture.pixels for sample in samples for picture in pictures(sample)]
        if not pixels:
            return []
        images = rearrange(np.stack([array for array in pixels if array is not None]), "b h w c -> b c h w")
        tokens = self.image_tokenizer.encode(torch.from_numpy(np.ascontiguousarray(images)))
        return [tokens.row(index) for index in range(len(pixels))]


def pretokenize(config: PretokenizeConfig) -> BadDataLog:
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
        for counts in _made(own):
            shards.append(counts)
            log.add(counts.samples, counts.bad)
            progress.update(task, description=f"{len(shards)} shards of {log.num_good:,} samples, bad records: {log}")
    write_manifest(config.output, shards)
    return log


def _made(own: Pretokenizer) -> Iterator[ShardCounts]:
    """Yields the shards up to the last in turn; each process makes the next that nobody has begun."""
    if own.config.processes == 1:
        for number in count():
            if not (counts := own.shard(number)).records:
                return
            yield counts
    numbers = count()
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(own.config.processes, spawned, _start_worker, (own.config,)) as pool:
        waiting = deque(pool.submit(_work, number) for number in islice(numbers, 2 * own.config.processes))
        try:
            while (counts := waiting.popleft().result()).records:
                waiting.append(pool.submit(_work, next(numbers)))
                yield counts
        finally:
            pool.shutdown(cancel_futures=True)


_worker: Pretokenizer | None = None
"""Of a process that makes shards for another."""


def _start_worker(config: PretokenizeConfig) -> None:
    global _worker
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.processes))
    _worker = Pretokenizer(config)


def _work(number: int) -> ShardCounts:
    assert _worker is not None
    return _worker.shard(number)


def _difference(made: ShardsInfo, info: ShardsInfo) -> str:
    own, other = asdict(made), asdict(info)
    return "; ".join(f"{name} {own[name]} instead of {other[name]}" for name in own if own[name] != other[name])


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all shards were made, 1 if too many records were bad, 2 if the command line makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source_arguments(parser, needs_schema=True)
    parser.add_argument("--model", type=Path, required=True, help="saved model whose two tokenizers are used")
    parser.add_argument("--output", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--records_per_shard", type=int, default=1024, help="records behind each shard")
    parser.add_argument("--max_ids", type=int, default=1024, help="ids of the longest sample that is kept")
    parser.add_argument("--max_bad_rate", type=float, default=0.01, help="share of bad records that is borne")
    parser.add_argument("--processes", type=int, default=1, help="shards made at a time")
    chosen = parser.parse_args(argv)
    try:
        config = PretokenizeConfig(
            source=source_of(chosen, _ANY_SIZE_PX),
            image_tokenizer=chosen.model / "image_tokenizer",
            text_tokenizer=chosen.model,
            output=chosen.output,
            records_per_shard=chosen.records_per_shard,
            max_ids=chosen.max_ids,
            bad_data=BadDataConfig(max_rate=chosen.max_bad_rate),
            processes=chosen.processes,
        )
        log = pretokenize(config)
    except ValueError as error:
        parser.error(str(error))
    except TooManyBadRecords as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{log.num_good:,} samples in {chosen.output}, bad records: {log}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
