"""Reading packed batches from shards: ids per second on one core, beside what one would read with instead.

python bench/loading.py

All read the same made-up samples in an order of their own, fill rows of 2,048 ids with as many as fit, and give tensors
of ids, targets, documents and positions: from shards (``data/shard_loading.py``), from a memory-mapped data set of
Hugging Face, and from JSON Lines. Times are of one thread's processor, the median of interleaved rounds; only ids of
samples count, not padding.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table

from rebus.data.packing import PackedBatch, pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered
from rebus.data.shard_loading import ShardLoader
from rebus.data.shards import Shards, ShardsInfo, shard_path, write_manifest, write_shard
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

ROWS, LENGTH = 8, 2048
NUM_SHARDS = 8

Read = Callable[[], PackedBatch]
"""Returns the next batch."""


def vocabulary() -> Vocabulary:
    """Returns one of 32,000 pieces and 8,192 codes."""
    return Vocabulary(32_000, CodeLayout("grid", 64, (Stream("code", 8192),), (8, 8)))


def make_samples(number: int, shortest: int, longest: int) -> list[Rendered]:
    """Returns samples of random ids, whose first quarter is not to be learned."""
    rng, samples, num_ids = random.Random(0), [], vocabulary().size
    for _ in range(number):
        ids = rng.choices(range(num_ids), k=rng.randint(shortest, longest))
        quarter = len(ids) // 4
        samples.append(Rendered(ids, [NOT_TRAINED] * quarter + ids[quarter:], [0] * len(ids)))
    return samples


def from_shards(samples: list[Rendered], folder: Path) -> Read:
    """Returns what reads the project's own format."""
    folder.mkdir()
    ShardsInfo(
        image_tokenizer="none",
        text_tokenizer="none",
        vocabulary=vocabulary().to_dict(),
        source="made up",
        schema="none",
        records_per_shard=len(samples) // NUM_SHARDS,
        max_ids=max(len(sample.ids) for sample in samples),
    ).write(folder)
    parts = [samples[part::NUM_SHARDS] for part in range(NUM_SHARDS)]
    write_manifest(folder, [write_shard(shard_path(folder, number), part, {}) for number, part in enumerate(parts)])
    loader = ShardLoader([Shards(folder)], [1.0], rows=ROWS, length=LENGTH, seed=0)
    return lambda: loader.batch(loader.step)


def from_arrow(samples: list[Rendered], folder: Path) -> Read:
    """Returns what reads a data set of Hugging Face, shuffled by its own means."""
    columns = {"ids": [sample.ids for sample in samples], "targets": [sample.targets for sample in samples]}
    Dataset.from_dict(columns).save_to_disk(str(folder))
    dataset = Dataset.load_from_disk(str(folder))

    def read() -> Iterator[Rendered]:
        for epoch in range(1_000_000):
            for row in dataset.shuffle(seed=epoch, keep_in_memory=True):
                yield Rendered(row["ids"], row["targets"], [0] * len(row["ids"]))  # pyright: ignore

    return _packed(read())


def from_json_lines(samples: list[Rendered], folder: Path) -> Read:
    """Returns what reads lines of JSON in the order of the file, which was shuffled before."""
    folder.mkdir()
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps({"ids": one.ids, "targets": one.targets}) + "\n" for one in samples))

    def read() -> Iterator[Rendered]:
        while True:
            with path.open() as file:
                for line in file:
                    row: dict[str, Any] = json.loads(line)
                    yield Rendered(row["ids"], row["targets"], [0] * len(row["ids"]))

    return _packed(read())


def _packed(samples: Iterator[Rendered]) -> Read:
    return lambda: PackedBatch.cat([pack_row(samples, LENGTH, vocabulary().pad) for _ in range(ROWS)])


def speed(read: Read, seconds: float) -> float:
    """Returns the ids a second of processor time, padding left out."""
    start, num_ids = time.thread_time(), 0
    while (taken := time.thread_time() - start) < seconds:
        num_ids += int((read().documents >= 0).sum())
    return num_ids / taken


def measure(lengths: tuple[int, int], rounds: int, seconds: float) -> dict[str, float]:
    """Returns the ids per second of each way for samples of such lengths."""
    samples = make_samples(8000, *lengths)
    ways = {"shards": from_shards, "datasets": from_arrow, "json_lines": from_json_lines}
    with tempfile.TemporaryDirectory() as folder:
        readers = {name: way(samples, Path(folder) / name) for name, way in ways.items()}
        for read in readers.values():
            read()
        speeds = [{name: speed(read, seconds) for name, read in readers.items()} for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in speeds) for name in ways}


def main() -> None:
    """Prints the table, and with ``--json`` one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in a round (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    chosen = parser.parse_args()
    if chosen.rounds < 1 or chosen.seconds <= 0:
        parser.error(f"--rounds and --seconds must be positive, got {chosen.rounds} and {chosen.seconds}")
    torch.set_num_threads(1)
    disable_progress_bars()
    table = Table("ids of a sample", "shards, M/s", "datasets, M/s", "JSON Lines, M/s", "vs datasets", "vs JSON Lines")
    figures = {}
    for lengths in ((60, 140), (60, 400), (300, 1000)):
        found = measure(lengths, chosen.rounds, chosen.seconds)
        ratios = {f"vs_{name}": found["shards"] / found[name] for name in ("datasets", "json_lines")}
        millions = [f"{value / 1e6:.1f}" for value in found.values()]
        name = f"{lengths[0]} to {lengths[1]}"
        table.add_row(name, *millions, *(f"{ratio:.1f}" for ratio in ratios.values()))
        figures[name] = {**found, **ratios}
    Console(width=120).print(table)
    if chosen.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
