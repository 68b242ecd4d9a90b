"""The folder of a report: each benchmark's marks in a file of its own, so that a report goes on where it stopped."""

import io
import json
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rebus.evaluation.benchmark import Benchmark, FileBenchmark, Marks, Outcome, Shown
from rebus.model.drawing_files import write_whole
from rebus.model.saved import file_hash

_FORMAT = 1
_PICTURES = "pictures"
REPORT = "report.json"
"""The file of the scores; there once all benchmarks are."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The model and all else beside the benchmark that decides over its marks."""

    model_hash: str
    """That of the saved model."""
    dtype: str
    """Number format of its language model."""
    seed: int
    """Of the drawings."""
    judges: tuple[str, ...]
    """SHA-256 of the weights of each judge."""

    def made_with(self, benchmark: Benchmark) -> dict[str, Any]:
        """Returns what the marks of a benchmark depend on, as it is written."""
        assert is_dataclass(benchmark) and not isinstance(benchmark, type)
        config = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(benchmark).items()}
        if isinstance(benchmark, FileBenchmark) and benchmark.path is not None and benchmark.path.is_file():
            config["file_hash"] = file_hash(benchmark.path)
        judges = self.judges if benchmark.is_judged else ()
        return {"format": _FORMAT, **asdict(self), "judges": judges, "benchmark": config}


@dataclass(frozen=True, eq=False)
class Done:
    """A benchmark that was run."""

    outcome: Outcome
    seconds: float
    """That it took."""


@dataclass(frozen=True)
class ReportFolder:
    """Keeps what benchmarks found out about one model."""

    path: Path
    evaluated: Evaluated

    def load(self, benchmark: Benchmark) -> Done | None:
        """Returns what a benchmark found out, if it was run.

        Raises:
            ValueError: if it was run with something else, or its file cannot be read.
        """
        file = self.path / f"{benchmark.name}.json"
        if not file.exists():
            return None
        got, done = read_done(self.path, benchmark.name)
        for key, wanted in json.loads(json.dumps(self.evaluated.made_with(benchmark))).items():
            if got.get(key) != wanted:
                advice = "take another --output, or delete the file"
                raise ValueError(f"{file} must be made with {key} {wanted}, got {got.get(key)}; {advice}")
        return done

    def save(self, benchmark: Benchmark, done: Done) -> None:
        """Writes what a benchmark found out; its file comes last, so that with it all is there."""
        outcome, name = done.outcome, benchmark.name
        pictures = {item: f"{_PICTURES}/{name}/{row:05}.png" for row, item in enumerate(outcome.shown)}
        shown = {
            item: {"prompt": one.prompt, "passed": one.passed, "seen": one.seen, "picture": pictures[item]}
            for item, one in outcome.shown.items()
        }
        values = {
            "made_with": self.evaluated.made_with(benchmark),
            "seconds": done.seconds,
            "marks": {score: asdict(one) for score, one in outcome.marks.items()},
            "others": outcome.others,
            "shown": shown,
        }
        write_whole({self.path / pictures[item]: _png(one.picture) for item, one in outcome.shown.items()})
        write_whole({self.path / f"{name}.json": (json.dumps(values, indent=1) + "\n").encode()})


def read_done(folder: Path, name: str) -> tuple[dict[str, Any], Done]:
    """Returns what a benchmark was made with, and what it found out.

    Raises:
        ValueError: if its file cannot be read.
    """
    file = folder / f"{name}.json"
    values = read_object(file)
    try:
        shown = {
            item: Shown(picture=_pixels(folder / one.pop("picture")), **one) for item, one in values["shown"].items()
        }
        marks = {score: Marks(**one) for score, one in values["marks"].items()}
        done = Done(Outcome(marks=marks, shown=shown, others=values["others"]), values["seconds"])
        return dict(values["made_with"]), done
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} must hold marks as this version writes them, got {error!r}") from error


def read_object(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        ValueError: if there is none.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} must be a file of a report, got {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object, got a {type(values).__name__}")
    return values


def _pixels(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{file} must be a picture of a report, got {error}") from error


def _png(picture: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "png")
    return content.getvalue()
