"""What a model draws for held-out scenes that it is told of, marked by judges."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rebus.data.scenes import Scene, draw
from rebus.evaluation.benchmark import (
    JUDGE_CEILING,
    REBUILT_CEILING,
    SECOND_JUDGE,
    SECOND_JUDGE_CEILING,
    Marks,
    Outcome,
    Shown,
    Workbench,
    attempted,
)
from rebus.evaluation.judges import Judge, Verdict

DRAWING_TASKS = {
    "one_object": "one",
    "two_objects": "two",
    "counting": "count",
    "position": "position",
    "background": "background",
    "sign_text": "sign",
}
"""Names of the drawing tasks in the report, and the tasks of the scenes that they ask for."""
ALL_DRAWINGS = "drawings"
"""The score of all tasks together, each of which has as many prompts."""

Picture = UInt8[np.ndarray, "height width 3"]
Kept = TypeVar("Kept")
_Found = tuple[Mapping[str, Kept], Mapping[str, str]]
"""What there is by item, and why there is nothing for the other items."""


@dataclass(frozen=True, kw_only=True)
class DrawingBenchmark:
    """Prompts of each drawing task, and the score of all together.

    Beside each score stand those of the composed scenes (where they fail, the judge is at fault) and of these encoded
    and painted again (where they fail, image tokenizer and decoder cannot show the scene).
    """

    number: int = 80
    """Prompts of each task."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "drawing"

    @property
    def is_judged(self) -> bool:
        """Judges look at the drawings."""
        return True

    def check(self) -> None:
        """Needs nothing but the judges."""

    def run(self, bench: Workbench) -> Outcome:
        """Asks for all drawings of one task after the other."""
        marks: dict[str, Marks] = {}
        shown: dict[str, Shown] = {}
        for score, task in DRAWING_TASKS.items():
            bench.say(f"drawing: {score}")
            rows = range(self.number)
            asked = {f"{task}/{row}": bench.samples.prompt(random.Random(f"draw/{task}/{row}"), task) for row in rows}
            found = _drawn(bench, asked, score)
            marks |= found.marks
            shown |= found.shown
        for group in ("", *(f"{one}/" for one in (JUDGE_CEILING, REBUILT_CEILING, SECOND_JUDGE, SECOND_JUDGE_CEILING))):
            parts = [marks[f"{group}{score}"] for score in DRAWING_TASKS if f"{group}{score}" in marks]
            if parts:
                marks[f"{group}{ALL_DRAWINGS}"] = _together(parts)
        return Outcome(marks=marks, shown=shown)


def _drawn(bench: Workbench, asked: Mapping[str, tuple[Scene, str]], score: str) -> Outcome:
    """Returns what the model draws for the prompts of one task, and the marks by all judges."""
    scenes = {item: scene for item, (scene, _) in asked.items()}
    prompts = {item: (prompt, bench.seed + row) for row, (item, (_, prompt)) in enumerate(asked.items())}
    true = {item: draw(scene, bench.samples.pack) for item, scene in scenes.items()}

    def drawings(part: Sequence[tuple[str, int]]) -> list[Picture]:
        drawn = bench.model.draw([prompt for prompt, _ in part], seed=[seed for _, seed in part])
        return [np.asarray(one.image) for one in drawn]

    def rebuilt(part: Sequence[Picture]) -> list[Picture]:
        return [np.asarray(one.image) for one in bench.model.rebuild([Image.fromarray(one) for one in part])]

    def judged(judge: Judge, pictures: _Found[Picture]) -> _Found[Verdict]:
        def verdicts(part: Sequence[str]) -> list[Verdict]:
            return judge.verdicts([scenes[item] for item in part], np.stack([pictures[0][item] for item in part]))

        found, failed = attempted(verdicts, {item: item for item in pictures[0]}, bench.batch_size)
        return found, {**pictures[1], **failed}

    drawn = attempted(drawings, prompts, bench.batch_size)
    first, *others = bench.judges
    verdicts = judged(first, drawn)
    rebuilds = attempted(rebuilt, true, bench.batch_size)
    marks = {
        score: _marks(*verdicts),
        f"{JUDGE_CEILING}/{score}": _marks(*judged(first, (true, {}))),
        f"{REBUILT_CEILING}/{score}": _marks(*judged(first, rebuilds)),
    }
    for judge in others:
        marks[f"{SECOND_JUDGE}/{score}"] = _marks(*judged(judge, drawn))
        marks[f"{SECOND_JUDGE_CEILING}/{score}"] = _marks(*judged(judge, (true, {})))
    shown = {item: _shown(prompts[item][0], picture, verdicts[0].get(item)) for item, picture in drawn[0].items()}
    return Outcome(marks=marks, shown=shown)


def _marks(verdicts: Mapping[str, Verdict], failed: Mapping[str, str]) -> Marks:
    return Marks(each={item: float(one.passed) for item, one in verdicts.items()}, failed=failed)


def _together(parts: Sequence[Marks]) -> Marks:
    return Marks(
        each={item: mark for one in parts for item, mark in one.each.items()},
        failed={item: why for one in parts for item, why in one.failed.items()},
    )


def _shown(prompt: str, picture: Picture, verdict: Verdict | None) -> Shown:
    if verdict is None:
        return Shown(prompt=prompt, picture=picture, passed=None, seen="the judge failed")
    return Shown(prompt=prompt, picture=picture, passed=verdict.passed, seen=verdict.seen)
