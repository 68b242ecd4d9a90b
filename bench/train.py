"""Training the language model: documents packed into rows and a loss in tiles against what one would run instead.

python bench/train.py --sizes 10M --rounds 5

All train the same random weights on documents of the shipped recipe (captions, pictures, questions, edits, stories),
with the same AdamW and as many positions a step. What counts are ids of documents, without padding, per second:

naive   the model and loss of transformers in float32, each document padded to the longest of all
strong  the same in bfloat16, compiled as a whole, documents of like length together, padded to the longest of a batch
ours    packed rows with attention within documents, bfloat16, compiled blocks, and for each target a softmax over its
        part of the vocabulary (model/language_model.py), in tiles (model/cross_entropy.py)

They take turns, and medians are compared. A second is one of processor time, which neighbours on the machine disturb
less, and one thread works by default. ``spread`` is largest less smallest rate of a turn, over the median one.

``mfu`` is the share of the machine's speed (two bfloat16 matrices of 2048 x 2048, in the same turns) that ours
turns into products of the model: for each position 6 operations per weight of the blocks and 12 * layers * dim for each
position that attention sees; for each target 6 * dim per id of its part of the vocabulary. Making logits a second time
in the backward pass does not count as work done. ``cross_entropy`` compares the tiles alone, over the whole vocabulary,
with ``F.cross_entropy`` in float32 and in bfloat16.
"""

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.utils import logging

from rebus.data.emoji import EmojiPack
from rebus.data.packing import PackedBatch, pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered, render
from rebus.data.samples import pictures, with_tokens
from rebus.model.cross_entropy import linear_cross_entropy
from rebus.model.language_model import DOCUMENT_ATTENTION, LanguageBatch, LanguageModelConfig, language_batch, loss
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.config import OptimConfig
from rebus.train.language_stage import scene_samples
from rebus.train.updates import PlainUpdater

SIZES = {
    "10M": LanguageModelConfig(dim=192, num_layers=6, num_heads=3, num_kv_heads=3, ffn_dim=512),
    "100M": LanguageModelConfig(dim=768, num_layers=10, num_heads=12, num_kv_heads=12, ffn_dim=2048),
}
LAYOUT = CodeLayout("grid", 64, (Stream("code", 8192),), (8, 8))
VOCABULARY = Vocabulary(40_000 - 8192 - 4, LAYOUT)
ROWS, ROW_LENGTH, NUM_DOCUMENTS, SQUARE = 2, 1024, 1000, 2048
POSITIONS = ROWS * ROW_LENGTH
OPTIM = OptimConfig(lr=1e-4)


@dataclass(frozen=True)
class Contender:
    """A way to train: what takes a step, and the batches of its turns with the number of ids that count."""

    updater: PlainUpdater
    batches: Sequence[Any]
    counts: Sequence[int]


def documents() -> list[Rendered]:
    """Returns documents of the shipped recipe, in which pictures have random codes."""
    tokenizer = TextTokenizer.load(Path(__file__).resolve().parent.parent / "assets" / "mini")
    samples, _ = scene_samples(EmojiPack.open())
    generator, made = torch.Generator().manual_seed(0), []
    for index in range(NUM_DOCUMENTS):
        sample = samples.document(random.Random(f"bench/{index}"))
        shape = (len(pictures(sample)), 64, 1)
        codes = Tokens(torch.randint(8192, shape, generator=generator), torch.full(shape[:1], 64), LAYOUT)
        rows = [codes.row(picture) for picture in range(len(codes.ids))]
        made.append(render(with_tokens(sample, rows), tokenizer, VOCABULARY))
    return made


def padded(group: Sequence[Rendered], length: int) -> dict[str, Tensor]:
    """Returns a batch of documents as ``transformers`` wants it. Causal attention needs no mask for padding behind."""
    ids = torch.full((len(group), length), VOCABULARY.pad)
    labels = torch.full((len(group), length), NOT_TRAINED)
    for row, document in enumerate(group):
        ids[row, : len(document.ids)] = torch.tensor(document.ids)
        labels[row, : len(document.ids)] = torch.tensor(document.targets)
    return {"input_ids": ids, "labels": labels}


def in_bfloat16(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a loss that is computed with bfloat16 arithmetic."""
    return torch.autocast("cpu", torch.bfloat16)(function)


def naive(model: LlamaForCausalLM, made: Sequence[Rendered], number: int) -> Contender:
    """Returns the loss of ``transformers`` as it comes, after a short batch to warm up."""
    longest = max(len(document.ids) for document in made)
    rows = POSITIONS // longest
    groups = [made[:1], *(made[index * rows : (index + 1) * rows] for index in range(number - 1))]
    updater = PlainUpdater(model, lambda batch: (model(**batch, use_cache=False).loss, {}), OPTIM)
    return Contender(updater, [padded(group, longest) for group in groups], [count(group) for group in groups])


def strong(model: LlamaForCausalLM, made: Sequence[Rendered], number: int) -> Contender:
    """Returns the same with all that is usual to make it fast."""
    remaining, groups = sorted(made, key=lambda document: len(document.ids)), []
    while remaining:
        rows = POSITIONS // len(remaining[-1].ids)
        groups, remaining = [*groups, remaining[-rows:]], remaining[:-rows]
    groups = random.Random(0).sample(groups[:-1], number)
    compiled = torch.compile(model, dynamic=True)
    updater = PlainUpdater(model, in_bfloat16(lambda batch: (compiled(**batch, use_cache=False).loss, {})), OPTIM)
    batches = [padded(group, max(len(document.ids) for document in group)) for group in groups]
    return Contender(updater, batches, [count(group) for group in groups])


def ours(model: LlamaForCausalLM, made: Sequence[Rendered], number: int) -> Contender:
    """Returns packed rows and the loss of this project."""
    model.set_attn_implementation(DOCUMENT_ATTENTION)
    for block in model.model.layers:
        block.compile()
    stream = iter(made)
    rows = [[pack_row(stream, ROW_LENGTH, VOCABULARY.pad) for _ in range(ROWS)] for _ in range(number)]
    batches = [language_batch(PackedBatch.cat(each), VOCABULARY) for each in rows]
    counts = [int((batch.packed.documents >= 0).sum()) for batch in batches]
    return Contender(PlainUpdater(model, in_bfloat16(lambda batch: loss(model, batch)), OPTIM), batches, counts)


def count(group: Sequence[Rendered]) -> int:
    """Returns the ids of documents."""
    return sum(len(document.ids) for document in group)


def operations(config: LanguageModelConfig, batch: LanguageBatch) -> float:
    """Returns how many operations the products of the model take, forward and backward."""
    seen = batch.packed.positions[batch.packed.documents >= 0] + 1
    blocks = 6 * config.num_layers * config.dim * (4 * config.dim + 3 * config.ffn_dim) * len(seen)
    attention = 12 * config.num_layers * config.dim * int(seen.sum())
    head = sum(6 * config.dim * (part.stop - part.start) * len(part.ids) for part in batch.heads)
    return blocks + attention + head


def seconds(work: Callable[[], object]) -> float:
    """Returns the processor time that something takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def steps(config: LanguageModelConfig, made: Sequence[Rendered], rounds: int, tick: Callable[[], None]) -> dict:
    """Returns the figures of whole steps of training."""
    contenders = {
        make.__name__: make(config.build(VOCABULARY, torch.Generator().manual_seed(0)), made, rounds + 1)
        for make in (naive, strong, ours)
    }
    square = torch.randn(SQUARE, SQUARE, generator=torch.Generator().manual_seed(0)).bfloat16()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    shares = []
    for turn in range(rounds + 1):
        took = {}
        for name, one in contenders.items():
            took[name] = seconds(partial(one.updater.update, [one.batches[turn]], OPTIM.lr))
            tick()
        limit = 2 * SQUARE**3 / min(seconds(lambda: square @ square) for _ in range(3))
        if turn:  # the first one warms up
            shares.append(operations(config, contenders["ours"].batches[turn]) / took["ours"] / limit)
            for name, one in contenders.items():
                rates[name].append(one.counts[turn] / took[name])
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {
        **{f"vs_{name}": medians["ours"] / medians[name] for name in ("naive", "strong")},
        "mfu": statistics.median(shares),
        **{f"per_second_{name}": value for name, value in medians.items()},
        **{f"spread_{name}": (max(each) - min(each)) / medians[name] for name, each in rates.items()},
    }


def head(config: LanguageModelConfig, rounds: int, tick: Callable[[], None]) -> dict[str, float]:
    """Returns how much faster the tiles are than ``F.cross_entropy``, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, config.dim, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY.size, config.dim, generator=generator).mul_(0.02).requires_grad_()
    ids = torch.randint(VOCABULARY.size, (POSITIONS,), generator=generator)

    def plain() -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), ids, reduction="sum")

    def tiles() -> Tensor:
        return linear_cross_entropy(hidden, weight, ids)[0].sum()

    ways = {"float32": plain, "bfloat16": in_bfloat16(plain), "tiles": in_bfloat16(tiles)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(seconds(lambda way=way: torch.autograd.grad(way(), [hidden, weight])))
            tick()
    took = {name: statistics.median(each) for name, each in times.items()}
    return {
        "cross_entropy": took["float32"] / took["tiles"],
        "cross_entropy_vs_bfloat16": took["bfloat16"] / took["tiles"],
    }


def measure(sizes: Sequence[str], rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the figures of each size of model."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        made = documents()
        for size in sizes:
            task = progress.add_task(f"{size}: steps and losses", total=3 * (2 * rounds + 1))
            tick = partial(progress.advance, task)
            yield size, {**steps(SIZES[size], made, rounds, tick), **head(SIZES[size], rounds, tick)}


def main() -> None:
    """Prints the table, and with ``--json`` one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models of so many parameters")
    parser.add_argument("--rounds", type=int, default=3, help="turns of which the median counts, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="threads that work")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    chosen = parser.parse_args()
    if min(chosen.rounds, chosen.threads) < 1:
        parser.error(f"--rounds and --threads must be at least 1, got {chosen.rounds} and {chosen.threads}")
    logging.set_verbosity_error()
    torch.set_num_threads(chosen.threads)
    figures = dict(measure(chosen.sizes, chosen.rounds))
    by_name = {name: {size: figures[size][name] for size in figures} for name in figures[chosen.sizes[0]]}
    table = Table("figure", *figures)
    for name, values in by_name.items():
        table.add_row(name, *(f"{value:.2f}" for value in values.values()))
    Console(width=120).print(table)
    print(f"peak memory of all together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if chosen.json:
        print(json.dumps(by_name))


if __name__ == "__main__":
    main()
