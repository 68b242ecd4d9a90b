"""The report on a saved model: what it draws, answers and describes on held-out scenes, by judges that never taught it.

python -m rebus.evaluation.report --model assets/mini
python -m rebus.evaluation.report --model assets/mini --limit 8 --contact_sheet sheet.png --json
python -m rebus.evaluation.report --model assets/mini --benchmarks drawing,vqa --output reports/mini

With --output the marks of each benchmark lie in a file of their own: the same command goes on where it was stopped.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.evaluation.benchmark import Benchmark, Workbench
from rebus.evaluation.benchmarks import BENCHMARKS, chosen_benchmarks
from rebus.evaluation.chosen_judges import SPRITES, identity, load_judges
from rebus.evaluation.detector import SHIPPED_JUDGE
from rebus.evaluation.drawing_sheet import drawing_sheet
from rebus.evaluation.figures import Figures, figures
from rebus.evaluation.report_folder import REPORT, Done, Evaluated, ReportFolder
from rebus.evaluation.report_table import check_plots, failures, markdown, plot, rows
from rebus.model.command_line import CommandParser
from rebus.model.drawing_files import write_whole
from rebus.model.rebus import Rebus


def evaluate(bench: Workbench, benchmarks: Sequence[Benchmark], folder: ReportFolder | None = None) -> dict[str, Done]:
    """Returns what benchmarks found out, by their names; those that the folder holds already are not run again.

    Raises:
        ValueError: if the folder holds one that was run on another model, or otherwise.
    """
    kept = {one.name: folder.load(one) if folder else None for one in benchmarks}  # all, before any work
    result = {}
    for one in benchmarks:
        done = kept[one.name]
        if done is None:
            start = time.monotonic()
            done = Done(one.run(bench), time.monotonic() - start)
            if folder:
                folder.save(one, done)
        result[one.name] = done
    return result


def main(argv: list[str] | None = None) -> None:
    """Reports on the model that the command line names."""
    parser, console = _parser(), Console()
    options = parser.parse(argv)
    with parser.refusing():
        names = None if options.benchmarks is None else options.benchmarks.split(",")
        if options.seed < 0:
            raise ValueError(f"seed must be at least 0, got {options.seed}")
        benchmarks = chosen_benchmarks(names, options.limit, _paths(options.path))
        _check_files(options.output, options.contact_sheet, benchmarks)
        samples = _held_out_samples()
        named = [str(options.judge), *([options.second_judge] if options.second_judge else [])]
        judges = load_judges(named, samples) if any(one.is_judged for one in benchmarks) else ()
        model = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        evaluated = Evaluated(
            model_hash=model.saved.hash,
            dtype=options.dtype,
            seed=options.seed,
            judges=tuple(identity(name) for name in named if judges),
        )
        with console.status("") as status:
            bench = Workbench(model=model, samples=samples, judges=judges, seed=options.seed, say=status.update)
            done = evaluate(bench, benchmarks, ReportFolder(options.output, evaluated) if options.output else None)
    found = {
        "model": str(options.model),
        "model_hash": evaluated.model_hash,
        "seed": options.seed,
        "benchmarks": {one.name: evaluated.made_with(one)["benchmark"] for one in benchmarks},
        **figures({name: one.outcome for name, one in done.items()}, options.seed),
        "seconds": sum(one.seconds for one in done.values()),
    }
    _show(found, console)
    shown = [picture for one in done.values() for picture in one.outcome.shown.values()]
    if options.contact_sheet is not None and shown:
        drawing_sheet(shown).save(options.contact_sheet)
    if options.output is not None:
        _write(found, options.output)
    if options.json:
        print(json.dumps(found))


def _parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_model_flags()
    known = ",".join(one.name for one in BENCHMARKS)
    parser.add_argument("--benchmarks", help=f"which, of {known} (default: all that need no path)")
    parser.add_argument("--path", action="append", default=[], metavar="NAME=PATH", help="files of a benchmark")
    parser.add_argument("--output", type=Path, help="folder for marks, report.json, report.md, scores.png and pictures")
    parser.add_argument("--judge", type=Path, default=SHIPPED_JUDGE, help="saved detector (default: the shipped one)")
    second = f"another saved detector, or {SPRITES}: the judge that learned nothing"
    parser.add_argument("--second_judge", help=f"its scores stand beside the first's: {second}")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings and of the resampling (default: 0)")
    parser.add_argument("--limit", type=int, help="most prompts, questions and pictures of each task")
    parser.add_argument("--contact_sheet", type=Path, help="file for a picture of all drawings with their verdicts")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def _paths(given: Sequence[str]) -> dict[str, Path]:
    """Returns paths by the names of benchmarks."""
    if wrong := [one for one in given if "=" not in one]:
        raise ValueError(f"--path must be NAME=PATH, got {', '.join(wrong)}")
    return {name: Path(path) for name, _, path in (one.partition("=") for one in given)}


def _check_files(output: Path | None, sheet: Path | None, benchmarks: Sequence[Benchmark]) -> None:
    """Refuses what could not be written after the work."""
    if output is not None:
        check_plots()
        if output.exists() and not output.is_dir():
            raise ValueError(f"--output must be a folder, got the file {output}")
    if sheet is not None:
        if sheet.suffix != ".png" or not sheet.parent.is_dir():
            raise ValueError(f"--contact_sheet must be a .png file in a folder that exists, got {sheet}")
        if not any(one.is_judged for one in benchmarks):
            raise ValueError("--contact_sheet must go with a benchmark that draws, got none")


def _write(found: Figures, folder: Path) -> None:
    text = {REPORT: json.dumps(found, indent=1) + "\n", "report.md": markdown(found)}
    write_whole({folder / name: content.encode() for name, content in text.items()})
    plot(found, folder / "scores.png")


def _held_out_samples() -> SceneSamples:
    pack = EmojiPack.open()
    return SceneSamples(SceneSampler(pack, mini_concepts(pack), "held_out"))


def _show(found: Figures, console: Console) -> None:
    headings, *lines = rows(found)
    table = Table(*headings, title=f"held-out scenes, {found['seconds']:.0f} s")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for line in failures(found):
        console.print(f"failed: {line}", markup=False)


if __name__ == "__main__":
    main()
