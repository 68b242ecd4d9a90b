"""Finding the nearest code of each feature: how much faster than what one would use instead, side by side.

python bench/quantizers.py

All search the same random features in the same random code book, in float32 on one thread of the processor:

search      the search of this project (tokenizers/quantizers/nearest.py)
cdist       ``torch.cdist(features, codes).argmin(-1)``
expanded    |f|^2 + |e|^2 - 2 f.e and its argmin, as taming-transformers and what came from it write it
quantizer   the whole vector quantizer of this project in eval mode: ids, features, commitment and usage
library     that of vector-quantize-pytorch in eval mode, Euclidean, for the same
step        the quantizer of this project in training: the same, and the moving averages
library's   that of the library in training

They take turns, each twice in a row of which the faster counts, for the first finds the caches full of another's
numbers; then medians of processor time are compared: ``search_vs_library`` is library over quantizer,
``search_vs_cdist`` and ``search_vs_expanded`` are those over search, ``step_vs_library`` is library's step over ours.
``same_index`` is the share of features for which search finds the index that float64 finds. Memory is by how much the
process grows while each runs, on Linux.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import vector_quantize_pytorch as library
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rebus.tokenizers.quantizers.nearest import nearest_codes
from rebus.tokenizers.quantizers.vector import VectorConfig

SIZES = {"4096 x 8192 x 32": (4096, 8192, 32), "4096 x 16384 x 64": (4096, 16384, 64)}
"""Features, codes, and the width of both."""


def expanded(features: Tensor, codes: Tensor) -> Tensor:
    """Returns the nearest codes by all squared distances."""
    squares = features.square().sum(1, keepdim=True) + codes.square().sum(1)
    return (squares - 2 * features @ codes.T).argmin(1)


def contenders(features: Tensor, codes: Tensor) -> dict[str, Callable[[], object]]:
    """Returns what takes turns, by name."""
    num_codes, dim = codes.shape
    quantizer, step = (VectorConfig(codebook_size=num_codes, dim=dim).build().train(trains) for trains in (False, True))
    theirs, their_step = (
        library.VectorQuantize(dim=dim, codebook_size=num_codes, rotation_trick=False).train(trains)
        for trains in (False, True)
    )
    for one in (quantizer, step):
        one.codebook.copy_(codes)
        one.sums.copy_(codes)
        one.counts.fill_(1.0)
    for other in (theirs, their_step):
        other.codebook = codes
    points = features.unsqueeze(0)
    return {
        "search": lambda: nearest_codes(features, codes),
        "cdist": lambda: torch.cdist(features, codes).argmin(-1),
        "expanded": lambda: expanded(features, codes),
        "quantizer": lambda: quantizer(points),
        "library": lambda: theirs(points),
        "step": lambda: step(points),
        "library's step": lambda: their_step(points),
    }


def growth(run: Callable[[], object]) -> float:
    """Returns by how many MiB the process grows at most while something runs."""
    status = Path("/proc/self/status")

    def kibibytes(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    ctypes.CDLL(None).malloc_trim(0)  # else a run could take what others left, and seem to need none
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kibibytes("VmRSS")
    run()
    return max(kibibytes("VmHWM") - before, 0) / 2**10


def seconds(run: Callable[[], object]) -> float:
    """Returns the processor time that something takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.no_grad()
def measure(size: tuple[int, int, int], rounds: int) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Returns the figures of a size, and of each contender the seconds and the MiB."""
    num_features, num_codes, dim = size
    generator = torch.Generator().manual_seed(0)
    features, codes = (torch.randn(number, dim, generator=generator) for number in (num_features, num_codes))
    exact = torch.cat([torch.cdist(part.double(), codes.double()).argmin(-1) for part in features.split(256)])
    same = (nearest_codes(features, codes) == exact).float().mean().item()
    runs = contenders(features, codes)
    memory = {name: growth(run) for name, run in runs.items()} if sys.platform == "linux" else {}
    turns = [{name: min(seconds(run), seconds(run)) for name, run in runs.items()} for _ in range(rounds)]
    took = {name: statistics.median(turn[name] for turn in turns) for name in runs}
    figures = {
        "search_vs_library": took["library"] / took["quantizer"],
        "search_vs_cdist": took["cdist"] / took["search"],
        "search_vs_expanded": took["expanded"] / took["search"],
        "step_vs_library": took["library's step"] / took["step"],
        "same_index": same,
    }
    return figures, took, memory


def main() -> None:
    """Prints the tables, and with ``--json`` one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="features x codes x width")
    parser.add_argument("--rounds", type=int, default=5, help="turns of which the median counts (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads that work (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    chosen = parser.parse_args()
    if min(chosen.rounds, chosen.threads) < 1:
        parser.error(f"--rounds and --threads must be at least 1, got {chosen.rounds} and {chosen.threads}")
    torch.set_num_threads(chosen.threads)
    measured = {size: measure(SIZES[size], chosen.rounds) for size in chosen.sizes}
    console, table = Console(width=120), Table("", *(f"{size}: ms" for size in measured), *(["MiB"] * len(measured)))
    names = list(measured[chosen.sizes[0]][1])
    for name in names:
        times = (f"{1000 * took[name]:.1f}" for _, took, _ in measured.values())
        table.add_row(name, *times, *(f"{memory[name]:.0f}" for *_, memory in measured.values() if memory))
    console.print(table)
    ratios = Table("figure", *measured)
    by_name: dict[str, dict[str, object]] = {}
    for name in measured[chosen.sizes[0]][0]:
        by_name[name] = {size: figures[name] for size, (figures, *_) in measured.items()}
        ratios.add_row(name, *(f"{value:.4g}" for value in by_name[name].values()))
    console.print(ratios)
    by_name["milliseconds"] = {
        size: {name: 1000 * took[name] for name in names} for size, (_, took, _) in measured.items()
    }
    by_name["peak_mib"] = {size: memory for size, (*_, memory) in measured.items()}
    if chosen.json:
        print(json.dumps(by_name))


if __name__ == "__main__":
    main()
