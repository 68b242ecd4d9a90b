"""The report on a saved model: what it draws, answers and describes on held-out scenes, by judges that never taught it.

python -m rebus.evaluation.report --model assets/mini
python -m rebus.evaluation.report --model assets/mini --limit 8 --contact_sheet sheet.png --json
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_questions import QUESTION_KINDS
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.evaluation.benchmarks import (
    DRAWING_TASKS,
    Answer,
    Caption,
    JudgedDrawing,
    UnifiedModel,
    answers,
    captions,
    drawings,
)
from rebus.evaluation.detector import SHIPPED_JUDGE, Detector
from rebus.evaluation.drawing_sheet import drawing_sheet
from rebus.evaluation.intervals import wilson
from rebus.evaluation.judges import Judge
from rebus.evaluation.sign_reader import SignReader
from rebus.model.command_line import CommandParser
from rebus.model.rebus import Rebus


@dataclass(frozen=True, kw_only=True)
class ReportSizes:
    """How much a report asks of a model; the defaults take about two minutes on two cores."""

    num_drawings: int = 80
    """Prompts of each drawing task."""
    num_answers: int = 210
    """Questions, shared evenly by the kinds."""
    num_captions: int = 120
    """Pictures to describe, shared evenly by the tasks of scenes."""
    batch_size: int = 16
    """Prompts or pictures given to the model at a time."""

    def limited(self, limit: int) -> "ReportSizes":
        """Returns the sizes with none of the numbers above the limit.

        Raises:
            ValueError: if the limit is below 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        numbers = (min(limit, number) for number in (self.num_drawings, self.num_answers, self.num_captions))
        return ReportSizes(**dict(zip(("num_drawings", "num_answers", "num_captions"), numbers, strict=True)))


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that a model did, and the marks it got."""

    drawings: dict[str, list[JudgedDrawing]]
    """By the names of ``DRAWING_TASKS``."""
    answers: list[Answer]
    captions: list[Caption]
    seconds: float

    def figures(self) -> dict[str, Any]:
        """Returns each score with its 95 % interval, by task, what true and rebuilt pictures score, and the seconds."""
        drawn = {name: [one.verdict.passed for one in done] for name, done in self.drawings.items()}
        true = {name: [one.true_verdict.passed for one in done] for name, done in self.drawings.items()}
        rebuilt = {name: [one.rebuilt_verdict.passed for one in done] for name, done in self.drawings.items()}
        kinds = {kind: [one.passed for one in self.answers if one.kind == kind] for kind in QUESTION_KINDS}
        return {
            **_scores(drawn),
            **_scores({"vqa": [one.passed for one in self.answers]}),
            **_scores({"caption_facts": [one.share for one in self.captions]}),
            "vqa_by_kind": _scores(kinds),
            "judge_ceiling": _scores(true),
            "rebuilt_ceiling": _scores(rebuilt),
            "seconds": self.seconds,
        }


def evaluate(
    model: UnifiedModel,
    judge: Judge,
    samples: SceneSamples,
    sizes: ReportSizes,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Returns what a model does on the scenes of ``samples``, which should be held out.

    Args:
        model: what is evaluated.
        judge: what looks at the drawings.
        samples: where prompts, questions and pictures come from.
        sizes: how many of each.
        say: is told what is under way.
    """
    start, done = time.monotonic(), {}
    for name, task in DRAWING_TASKS.items():
        say(f"drawing: {name}")
        done[name] = drawings(model, judge, samples, task, sizes.num_drawings, sizes.batch_size)
    say("answering")
    answered = answers(model.answers, samples, sizes.num_answers, sizes.batch_size)
    say("describing")
    told = captions(model, samples, sizes.num_captions, sizes.batch_size)
    return Report(done, answered, told, time.monotonic() - start)


def main(argv: list[str] | None = None) -> None:
    """Reports on the model that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_model_flags()
    parser.add_argument("--judge", type=Path, default=SHIPPED_JUDGE, help="saved detector (default: the shipped one)")
    parser.add_argument("--limit", type=int, help="most prompts, questions and pictures of each task")
    parser.add_argument("--contact_sheet", type=Path, help="file for a picture of all drawings with their verdicts")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    pack, console = EmojiPack.open(), Console()
    samples = SceneSamples(SceneSampler(pack, mini_concepts(pack), "held_out"))
    with parser.refusing():
        sizes = ReportSizes() if options.limit is None else ReportSizes().limited(options.limit)
        detector = Detector.load(options.judge)
        if unknown := set(samples.sampler.concepts) - set(detector.concepts):
            names = ", ".join(sorted(pack.concepts[concept].label for concept in unknown))
            raise ValueError(f"{options.judge} must know all objects that are asked for, got none of {names}")
        judge = Judge(detector, SignReader(), pack)
        sheet = options.contact_sheet
        if sheet is not None and (sheet.suffix != ".png" or not sheet.parent.is_dir()):
            raise ValueError(f"--contact_sheet must be a .png file in a folder that exists, got {sheet}")
        model = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        with console.status("") as status:
            report = evaluate(model, judge, samples, sizes, status.update)
    figures = report.figures()
    console.print(_table(figures))
    if sheet is not None:
        drawing_sheet([one for done in report.drawings.values() for one in done]).save(sheet)
    if options.json:
        print(json.dumps({"model": str(options.model), **figures}))


def _scores(marks: Mapping[str, Sequence[bool | float]]) -> dict[str, dict[str, float]]:
    """Returns the score of each list of marks; none for an empty one."""
    return {name: asdict(wilson(values)) for name, values in marks.items() if values}


def _table(figures: dict[str, Any]) -> Table:
    """Returns the scores beside those of the true pictures, and of these encoded and painted again."""
    table = Table("task", "score", "95 % interval", "of", "true pictures", "rebuilt")
    for name, value in figures.items():
        if isinstance(value, dict) and "score" in value:
            ceilings = [figures[f"{kind}_ceiling"].get(name) for kind in ("judge", "rebuilt")]
            table.add_row(*_cells(name, value), *(f"{one['score']:.3f}" if one else "" for one in ceilings))
    for kind, value in figures["vqa_by_kind"].items():
        table.add_row(*_cells(f"  vqa: {kind}", value))
    table.title = f"held-out scenes, {figures['seconds']:.0f} s"
    return table


def _cells(name: str, value: dict[str, float]) -> tuple[str, str, str, str]:
    return name, f"{value['score']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}", str(value["n"])


if __name__ == "__main__":
    main()
