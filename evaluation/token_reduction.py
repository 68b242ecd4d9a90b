"""How well a model answers about pictures of which it reads only some codes: accuracy against codes, by method.

python -m rebus.evaluation.token_reduction --model assets/mini --plot curve.png

The questions are those of the report, about held-out scenes. The model was not trained to read parts of pictures.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.evaluation.answer_benchmark import answers
from rebus.evaluation.intervals import wilson
from rebus.model.command_line import CommandParser
from rebus.model.rebus import Rebus
from rebus.model.token_reduction import AttendedCodes, DiverseCodes, FirstCodes, MergedCodes, TokenReduction

SHARES = (0.75, 0.5, 0.25, 0.125)
"""Of a picture's codes that are read."""
BATCH_SIZE = 16
Curves = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Scores with their 95 % intervals by method and number of codes."""


def methods(num_codes: int) -> dict[str, TokenReduction]:
    """Returns every way to read so many codes of a picture."""
    return {
        "the first": FirstCodes(num_codes=num_codes),
        "diverse": DiverseCodes(num_codes=num_codes),
        "merged": MergedCodes(num_codes=num_codes),
        "diverse, closed ranks": DiverseCodes(num_codes=num_codes, keep_positions=False),
        "attended to, after two blocks": AttendedCodes(num_codes=num_codes, num_blocks=2),
    }


def curves(rebus: Rebus, samples: SceneSamples, number: int) -> Curves:
    """Returns the score and its 95 % interval by method and number of codes; that of whole pictures for each."""
    whole = rebus.saved.vocabulary.num_codes
    unreduced = asdict(wilson([one.passed for one in answers(rebus.answers, samples, number, BATCH_SIZE)]))
    figures = {name: {whole: unreduced} for name in methods(whole)}
    for share in SHARES:
        num_codes = round(share * whole)
        for name, reduction in methods(num_codes).items():
            answer = partial(rebus.answers, reduction=reduction)
            marks = [one.passed for one in answers(answer, samples, number, BATCH_SIZE)]
            figures[name][num_codes] = asdict(wilson(marks))
    return figures


def plot(figures: Curves, path: Path) -> None:
    """Draws accuracy against codes, a line for each method with its intervals."""
    from matplotlib.figure import Figure  # comes with the extra "evaluation"

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in figures.items():
        numbers = sorted(values)
        scores = [values[number]["score"] for number in numbers]
        below = [values[number]["score"] - values[number]["low"] for number in numbers]
        above = [values[number]["high"] - values[number]["score"] for number in numbers]
        axes.errorbar(numbers, scores, yerr=(below, above), marker="o", capsize=3, label=name)
    axes.set(xlabel="codes of a picture that are read", ylabel="questions answered right", ylim=(0, 1))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Prints the curves of the model that the command line names, and draws them."""
    parser = CommandParser(__doc__)
    parser.add_model_flags()
    parser.add_argument("--limit", type=int, default=210, help="questions for each point (default: 210)")
    parser.add_argument("--plot", type=Path, help="file for a picture of the curves (.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    pack, console = EmojiPack.open(), Console()
    samples = SceneSamples(SceneSampler(pack, mini_concepts(pack), "held_out"))
    with parser.refusing():
        if options.limit < 1:
            raise ValueError(f"limit must be at least 1, got {options.limit}")
        if options.plot is not None and (options.plot.suffix != ".png" or not options.plot.parent.is_dir()):
            raise ValueError(f"--plot must be a .png file in a folder that exists, got {options.plot}")
        rebus = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        with console.status("answering"):
            figures = curves(rebus, samples, options.limit)
    numbers = sorted(next(iter(figures.values())), reverse=True)
    table = Table("codes read", *map(str, numbers), title=f"questions answered right, of {options.limit}")
    for name, values in figures.items():
        table.add_row(name, *(f"{values[number]['score']:.3f}" for number in numbers))
    console.print(table)
    if options.plot is not None:
        plot(figures, options.plot)
    if options.json:
        print(json.dumps({"model": str(options.model), "curves": figures}))


if __name__ == "__main__":
    main()
