"""Compares two models by their reports: paired tests on the same items, and drawings that only one of them got right.

python -m rebus.evaluation.report --model assets/mini --output reports/one
python -m rebus.evaluation.compare_models --first reports/one --second reports/other --output reports/one_and_other
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from rebus.evaluation.benchmark import Marks, Shown
from rebus.evaluation.drawing_sheet import drawing_sheet
from rebus.evaluation.model_comparison import differences, judges_alike, markdown
from rebus.evaluation.report_folder import REPORT, read_done, read_object
from rebus.model.command_line import CommandParser
from rebus.model.drawing_files import write_whole

MOST_PAIRS = 40
"""Pairs of drawings on a sheet that the first model got right, and as many that the second did."""
_MAY_DIFFER = ("number", "path")
"""Fields of a benchmark with which an item of a name stays the same; of a file the hash counts, not the path."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadReport:
    """What the benchmarks of a report found out."""

    made_with: dict[str, dict[str, Any]]
    """What decides over the marks, by benchmark."""
    marks: dict[str, Marks]
    """By score."""
    shown: dict[str, Shown]
    """By benchmark and item."""

    @staticmethod
    def read(folder: Path) -> "ReadReport":
        """Reads a report.

        Raises:
            ValueError: if there is no whole report in the folder.
        """
        if not (folder / REPORT).is_file():
            wanted = f"{folder} must be a folder that rebus.evaluation.report --output wrote"
            raise ValueError(f"{wanted}, got no {REPORT} in it")
        names = read_object(folder / REPORT).get("benchmarks")
        if not isinstance(names, dict):
            raise ValueError(f"{folder / REPORT} must say which benchmarks were run, got {names!r}")
        read = {name: read_done(folder, name) for name in names}
        outcomes = {name: done.outcome for name, (_, done) in read.items()}
        return ReadReport(
            made_with={name: made_with for name, (made_with, _) in read.items()},
            marks={score: marks for one in outcomes.values() for score, marks in one.marks.items()},
            shown={f"{name}/{item}": shown for name, one in outcomes.items() for item, shown in one.shown.items()},
        )

    def check_comparable(self, other: "ReadReport") -> None:
        """Refuses a report on other items, or by other judges.

        Raises:
            ValueError: if there is no benchmark in common, or one was made otherwise.
        """
        shared = [name for name in self.made_with if name in other.made_with]
        if not shared:
            mine, theirs = (", ".join(one.made_with) for one in (self, other))
            raise ValueError(f"both reports must have a benchmark in common, got {mine} and {theirs}")
        for name in shared:
            pair = (self.made_with[name], other.made_with[name])
            items = [{key: one for key, one in made["benchmark"].items() if key not in _MAY_DIFFER} for made in pair]
            judges = [list(one) for one in zip(*(made["judges"] for made in pair), strict=False)]
            for what, (mine, theirs) in (("items", items), *(("judges", one) for one in judges)):
                if mine != theirs:
                    raise ValueError(f"{name}: both reports must be of the same {what}, got {mine} and {theirs}")


def decided(first: Mapping[str, Shown], second: Mapping[str, Shown]) -> tuple[list[str], list[str]]:
    """Returns the items that only the first model got right, and those that only the second did."""
    both = [(item, one.passed, second[item].passed) for item, one in first.items() if item in second]
    lost = [item for item, one, other in both if one is True and other is False]
    return lost, [item for item, one, other in both if one is False and other is True]


def difference_sheet(first: Mapping[str, Shown], second: Mapping[str, Shown]) -> Image.Image | None:
    """Returns drawings of both models side by side, of prompts that only one got right; the first model's come first.

    Returns:
        None if both got the same right.
    """
    items = [item for part in decided(first, second) for item in part[:MOST_PAIRS]]
    sides = (("first", first), ("second", second))
    pairs = [replace(shown[item], prompt=f"{side}: {shown[item].prompt}") for item in items for side, shown in sides]
    return drawing_sheet(pairs) if pairs else None


def main(argv: list[str] | None = None) -> None:
    """Compares the reports that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--first", type=Path, required=True, help="folder of a report")
    parser.add_argument("--second", type=Path, required=True, help="folder of a report on another model")
    parser.add_argument("--output", type=Path, help="folder for differences.json, differences.md and differences.png")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws of tests and intervals (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    with parser.refusing():
        if options.seed < 0:
            raise ValueError(f"seed must be at least 0, got {options.seed}")
        if options.output is not None and options.output.exists() and not options.output.is_dir():
            raise ValueError(f"--output must be a folder, got the file {options.output}")
        first, second = ReadReport.read(options.first), ReadReport.read(options.second)
        first.check_comparable(second)
    found = differences(first.marks, second.marks, options.seed)
    named = {"first": str(options.first), "second": str(options.second), "seed": options.seed}
    lost, gained = decided(first.shown, second.shown)
    result = named | {"scores": {name: asdict(one) for name, one in found.items()}, "judges_alike": judges_alike(found)}
    result |= {"only_first": lost, "only_second": gained}
    text = f"First: `{options.first}`; second: `{options.second}`.\n\n{markdown(found)}"
    text += f"\nDrawings that only the first got right: {len(lost)}; only the second: {len(gained)}.\n"
    print(text)
    if options.output is not None:
        names = {"differences.json": json.dumps(result, indent=1) + "\n", "differences.md": text}
        write_whole({options.output / name: content.encode() for name, content in names.items()})
        if sheet := difference_sheet(first.shown, second.shown):
            sheet.save(options.output / "differences.png")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
