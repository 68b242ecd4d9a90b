r"""How much better drawings get by searching for their codes, and at what price: best of N, beam and lookahead search.

python -m rebus.evaluation.search --model assets/mini --output runs/search

The same held-out prompts are drawn in every way and looked at by two judges that no search knows; it is led by what the
model itself reads in its drafts (``prefix_search.py``). A beam search draws as many codes as the best of so many
drafts, a lookahead search twice as many. There come scores with their intervals, gains over a single draft, and the
codes, paintings, readings and seconds that a picture takes (``search.json``), the same as a table (``search.md``), and
the scores over codes and seconds (``search.png``). A search that was stopped goes on where it stood.

Source: Rezaei et al., "(1D) Ordered Tokens Enable Efficient Test-Time Search", https://arxiv.org/abs/2604.15453 (scores
against compute, by kind of search and of tokens).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rebus.evaluation.arm_tables import markdown
from rebus.evaluation.chosen_judges import shipped_judges
from rebus.evaluation.trials import ArmsConfig, Drawn, compare
from rebus.model.command_line import SHIPPED_MODEL, CommandParser
from rebus.model.prefix_search import PrefixSearch, search
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel
from rebus.tokenizers.tokens import CodeLayout

_AGAINST = {"codes_per_picture": "codes drawn for a picture", "seconds_per_picture": "seconds for a picture"}


@dataclass(frozen=True, kw_only=True)
class SearchArm:
    """A saved model that searches; all else is as the model draws best."""

    model: Path
    """Folder of the saved model."""
    how: PrefixSearch
    """The search."""

    @property
    def models(self) -> tuple[Path, ...]:
        """The one model."""
        return (self.model,)

    def settings(self) -> dict[str, Any]:
        """Returns the search as plain values."""
        return {**asdict(self.how), "choose_at": list(self.how.choose_at)}

    def draw(self, model: Rebus, prompts: Sequence[str], seeds: Sequence[int]) -> Drawn:
        """Returns a picture for each prompt."""
        assert model.writer.engine and model.image_tokenizer  # read before the clock starts
        start = time.perf_counter()
        found = search(model, prompts, self.how, seed=seeds)
        seconds = time.perf_counter() - start
        painted = model.paint(found.tokens, seed=seeds)
        costs = {
            "codes": float(found.num_codes),
            "paintings": float(found.num_paintings),
            "readings": float(found.num_readings),
            "seconds": seconds + painted[0].statistics.decoder_seconds,
        }
        return Drawn([one.image for one in painted], costs)


def searches(layout: CodeLayout, most_drafts: int) -> dict[str, PrefixSearch]:
    """Returns the searches that are compared, by their names.

    A beam search chooses where another quarter of the codes is drawn, of codes of which any first ones are a picture
    where they have doubled in number. A lookahead search always draws whole pictures, so that it chooses less often.

    Args:
        layout: of the codes.
        most_drafts: of best of N, of which the numbers are powers of two; the other searches draw no more codes.

    Raises:
        ValueError: if the most drafts are less than 4, the fewest of a beam search.
    """
    if most_drafts < 4:
        raise ValueError(f"most_drafts must be at least 4, got {most_drafts}")
    whole = layout.num_positions
    quarters = (whole // 4, whole // 2, whole - whole // 4)
    doubled = tuple(2**power for power in range((whole - 1).bit_length()))
    numbers = [2**power for power in range(most_drafts.bit_length())]
    beams = {
        number: PrefixSearch(
            drafts=number, kept=number // 4, choose_at=doubled if layout.prefix_decodable else quarters
        )
        for number in numbers
        if number >= 4
    }
    aheads = {
        number // 2: PrefixSearch(drafts=number // 2, choose_at=(quarters[0], quarters[2]), ahead=whole)
        for number in beams
    }
    return {
        **{f"best of {number}": PrefixSearch(drafts=number) for number in numbers},
        **{f"beam of {number}": how for number, how in beams.items()},
        **{f"lookahead of {number}": how for number, how in aheads.items()},
    }


def plot(figures: Mapping[str, Any], file: Path) -> None:
    """Draws the mean score over codes and over seconds, a line for each kind of search, a row for each judge."""
    from matplotlib.figure import Figure  # comes with the extra "evaluation"

    judges = figures["judges"]
    kinds = dict.fromkeys(name.rpartition(" ")[0] for name in next(iter(judges.values())))
    figure = Figure(figsize=(11, 4.5 * len(judges)), layout="constrained")
    panels = figure.subplots(len(judges), len(_AGAINST), squeeze=False)
    for row, (judge, arms) in zip(panels, judges.items(), strict=True):
        for axes, (cost, label) in zip(row, _AGAINST.items(), strict=True):
            for kind in kinds:
                names = [name for name in arms if name.rpartition(" ")[0] == kind]
                points = [arms[name]["scores"]["mean"] for name in names]
                heights = [one["score"] for one in points]
                reach = [[one["score"] - one["low"] for one in points], [one["high"] - one["score"] for one in points]]
                axes.errorbar(
                    [figures[cost][name] for name in names],
                    heights,
                    yerr=reach,
                    marker="o",
                    capsize=3,
                    label=f"{kind} N",
                )
            axes.set(xlabel=label, ylabel=f"judged right by the {judge}", xscale="log")
            ticks = sorted({float(f"{value:.1g}") for value in figures[cost].values()})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    panels[0, 0].legend()
    figure.savefig(file, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Compares the searches with the model that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="saved model (default: the shipped one)")
    parser.add_argument("--num_prompts", type=int, default=40, help="of each drawing task (default: 40)")
    parser.add_argument(
        "--most_drafts", type=int, default=16, help="of best of N; other searches draw no more codes (default: 16)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/search"), help="folder of all that is found")
    options = parser.parse(argv)
    console = Console(stderr=True)
    with parser.refusing():
        compared = searches(SavedModel.open(options.model).vocabulary.layout, options.most_drafts)
        arms = {name: SearchArm(model=options.model, how=how) for name, how in compared.items()}
        config = ArmsConfig(arms=arms, num_prompts=options.num_prompts, output=options.output)
        judges = shipped_judges()
        with console.status("") as status:
            figures = compare(config, judges, status.update)
    table = markdown(figures)
    (config.output / "search.json").write_text(json.dumps(figures, indent=1) + "\n")
    (config.output / "search.md").write_text(table)
    plot(figures, config.output / "search.png")
    print(table)


if __name__ == "__main__":
    main()
