"""How much picture codes are like a language: frequencies, novelty, and what a code tells of its neighbours.

python -m rebus.evaluation.token_statistics --image_tokenizer assets/mini/image_tokenizer --plot statistics.png

Source: Chan et al., "Analyzing The Language of Visual Tokens", https://arxiv.org/abs/2411.05001, sec. 3 (Zipf's law,
token innovation) and 4 (entropy, redundancy).
Differs: grammars are not fitted; what order is worth is the information that a code has about its neighbours, with the
part that chance alone would give measured on shuffled codes and taken off.
"""

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of
from rebus.data.scene_sampler import SceneSampler
from rebus.model.command_line import CommandParser
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import Tokens

_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class StreamStatistics:
    """Figures of one stream of codes over many pictures."""

    num_codes: int
    """Codes counted."""
    entropy_bits: float
    """Of a code by itself; at most the logarithm of the size of its code book."""
    redundancy: float
    """Share of the bits of a uniform code that its frequencies save; 0 for codes that are used alike."""
    zipf_exponent: float
    """How fast frequency falls with rank, from a line through the logarithms; words have about 1."""
    zipf_fit: float
    """Share of the variance of the logarithms that the line explains."""
    heaps_exponent: float
    """How the number of distinct codes grows with the codes read: 1 if each is new, 0 if none is."""
    previous_bits: float
    """What the code before tells of a code, in bits above chance."""
    above_bits: float | None
    """What the code above tells of a code on a grid, in bits above chance; None off a grid."""


def stream_statistics(tokens: Tokens, stream: int, generator: torch.Generator) -> StreamStatistics:
    """Returns the figures of one stream.

    Args:
        tokens: codes of many pictures.
        stream: its number.
        generator: shuffles codes, to measure what chance gives.
    """
    ids, mask, size = tokens.ids[..., stream], tokens.mask, tokens.layout.streams[stream].size
    flat = ids[mask]
    entropy = entropy_bits(flat)
    exponent, fit = zipf(flat)
    pairs = mask[:, 1:]
    above = None
    if tokens.layout.grid is not None:
        columns = tokens.layout.grid[1]
        below = mask[:, columns:]
        above = information_bits(ids[:, :-columns][below], ids[:, columns:][below], generator)
    return StreamStatistics(
        num_codes=len(flat),
        entropy_bits=entropy,
        redundancy=1 - entropy / math.log2(size) if size > 1 else 0.0,
        zipf_exponent=exponent,
        zipf_fit=fit,
        heaps_exponent=heaps(innovation(flat)),
        previous_bits=information_bits(ids[:, :-1][pairs], ids[:, 1:][pairs], generator),
        above_bits=above,
    )


def entropy_bits(codes: Int[Tensor, " codes"]) -> float:
    """Returns the entropy of codes by themselves."""
    shares = codes.unique(return_counts=True)[1].double() / max(len(codes), 1)
    return torch.special.entr(shares).sum().item() / math.log(2)


def information_bits(first: Int[Tensor, " pairs"], second: Int[Tensor, " pairs"], generator: torch.Generator) -> float:
    """Returns the mutual information of pairs less that of the same codes paired at random.

    The plain estimate is far too high where pairs are few beside the pairs that could be.
    """
    shuffled = second[torch.randperm(len(second), generator=generator)]
    return _joint_bits(first, shuffled) - _joint_bits(first, second)


def _joint_bits(first: Tensor, second: Tensor) -> float:
    return entropy_bits(first * (int(second.max()) + 1) + second) if len(first) else 0.0


def frequencies(codes: Int[Tensor, " codes"]) -> Float[Tensor, " ranks"]:
    """Returns the share of each code in use, the most frequent first."""
    return codes.unique(return_counts=True)[1].double().sort(descending=True).values / len(codes)


def zipf(codes: Int[Tensor, " codes"]) -> tuple[float, float]:
    """Returns the exponent of a power law of frequency by rank, and the share of variance that it explains.

    Ranks count alike on the scale of logarithms, where the line is fitted: the mass of rare codes would decide it
    otherwise.
    """
    shares = frequencies(codes)
    if len(shares) < 3:
        return 0.0, 0.0
    ranks = torch.logspace(0, math.log10(len(shares)), 50, dtype=torch.double).round().long().unique()
    x, y = ranks.double().log(), shares[ranks - 1].log()
    x_away, y_away = x - x.mean(), y - y.mean()
    slope = (x_away @ y_away) / (x_away @ x_away)
    spread = (y_away @ y_away).item()
    return -slope.item(), ((slope * x_away) @ y_away).item() / spread if spread > 1e-12 else 0.0


def innovation(codes: Int[Tensor, " codes"]) -> Int[Tensor, " codes"]:
    """Returns the number of distinct codes among the first 1, 2, ... codes."""
    order = codes.argsort(stable=True)
    is_first = torch.ones(len(codes), dtype=torch.bool)
    is_first[order[1:]] = codes[order[1:]] != codes[order[:-1]]
    return is_first.cumsum(0)


def heaps(distinct: Int[Tensor, " codes"]) -> float:
    """Returns the exponent of the growth of distinct codes over the second half of the logarithm of codes read."""
    total = len(distinct)
    if total < 4:
        return 1.0
    middle = math.isqrt(total)
    return math.log(int(distinct[-1]) / int(distinct[middle - 1])) / math.log(total / middle)


def scene_tokens(tokenizer: ImageTokenizer, pack: EmojiPack, number: int) -> Tokens:
    """Returns the codes of training scenes, as a language model reads them."""
    sampler = SceneSampler(pack, mini_concepts(pack), "train")
    scenes = [sampler.scene(random.Random(f"statistics/{row}")) for row in range(number)]
    parts = (scenes[start : start + _BATCH_SIZE] for start in range(0, number, _BATCH_SIZE))
    return Tokens.cat([tokenizer.encode(pictures_of(part, pack)) for part in parts])


def plot(tokens: Tokens, file: Path) -> None:
    """Draws frequency by rank, and distinct codes by codes read, of each stream."""
    from matplotlib.figure import Figure  # comes with the extra "evaluation"

    figure = Figure(figsize=(9, 4), layout="constrained")
    ranked, grown = figure.subplots(1, 2)
    for index, stream in enumerate(tokens.layout.streams):
        codes = tokens.ids[..., index][tokens.mask]
        ranked.loglog(range(1, len(shares := frequencies(codes)) + 1), shares, label=stream.name)
        grown.plot(innovation(codes))
    ranked.set(xlabel="rank of a code", ylabel="share of all codes", title="Zipf's law is a straight line")
    grown.set(xlabel="codes read", ylabel="distinct codes", title="Novelty")
    ranked.legend()
    figure.savefig(file, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Tells the figures of the image tokenizer that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--image_tokenizer", type=Path, required=True, help="folder of a saved image tokenizer")
    parser.add_argument("--limit", type=int, default=1000, help="scenes to look at (default: 1000)")
    parser.add_argument("--plot", type=Path, help="file for a picture of frequencies and novelty")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    with parser.refusing():
        if options.limit < 1:
            raise ValueError(f"limit must be at least 1, got {options.limit}")
        tokens = scene_tokens(ImageTokenizer.load(options.image_tokenizer), EmojiPack.open(), options.limit)
    generator = torch.Generator().manual_seed(0)
    streams = enumerate(tokens.layout.streams)
    figures = {stream.name: asdict(stream_statistics(tokens, index, generator)) for index, stream in streams}
    table = Table("figure", *figures, title="The language of the codes")
    for name in next(iter(figures.values())):
        values = (stream[name] for stream in figures.values())
        table.add_row(name, *("" if value is None else f"{value:.4g}" for value in values))
    Console().print(table)
    if options.plot is not None:
        plot(tokens, options.plot)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
