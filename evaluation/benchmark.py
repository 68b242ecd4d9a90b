"""What a benchmark is: a frozen config that asks a model for something and gives each item its mark.

The report runs benchmarks, keeps their marks and makes scores of them; a benchmark itself knows of no other, of no
interval and of no file. ``evaluation/benchmarks.py`` lists them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rebus.data.scene_text import SceneSamples
from rebus.evaluation.judges import Judge

Kind = Literal["share", "higher", "lower"]
"""A mark is a share in [0, 1], or any number of which the higher (CIDEr) or the lower (a loss) is the better."""
SECOND_JUDGE = "second_judge"
JUDGE_CEILING = "judge_ceiling"
SECOND_JUDGE_CEILING = "second_judge_ceiling"
REBUILT_CEILING = "rebuilt_ceiling"
"""Groups whose scores stand beside the score of the same name, not in rows of their own."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@runtime_checkable
class Drawn(Protocol):
    """A drawing of a model."""

    @property
    def image(self) -> Image.Image:
        """The picture."""
        ...


@runtime_checkable
class UnifiedModel(Protocol):
    """What is evaluated: draws, answers and describes, as a ``Rebus`` does.

    A benchmark that asks more of a model has a protocol of its own and refuses models that are not of it.
    """

    def draw(self, prompts: Sequence[str], *, seed: Sequence[int]) -> Sequence[Drawn]:
        """Returns one drawing for each prompt."""
        ...

    def rebuild(self, images: Sequence[Image.Image]) -> Sequence[Drawn]:
        """Returns each picture as its codes keep it: encoded and painted again."""
        ...

    def answers(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Returns one answer for each picture and its question."""
        ...

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """Returns one description for each picture."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """What a benchmark works with."""

    model: UnifiedModel
    """What is evaluated."""
    samples: SceneSamples
    """Held-out scenes, and the emoji that they are made of."""
    judges: tuple[Judge, ...] = ()
    """The judge that reports and perhaps a second one; none for benchmarks that are not judged."""
    batch_size: int = 16
    """Prompts or pictures given to the model at a time."""
    seed: int = 0
    """Of the first drawing of a task; the others count on from it."""
    say: Callable[[str], None] = lambda _: None
    """Is told what is under way."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What the items of one score got; the score is their mean."""

    each: Mapping[str, float]
    """Marks by item. An item has the same name whatever the model: two models are compared on the items of both."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Items that could not be marked, and why: they are counted, and are no part of the score."""
    kind: Kind = "share"

    def __post_init__(self) -> None:
        for item, mark in self.each.items():
            if not math.isfinite(mark) or (self.kind == "share" and not 0 <= mark <= 1):
                wanted = "in [0, 1]" if self.kind == "share" else "finite"
                raise ValueError(f"marks must be {wanted}, got {mark} for {item}")
        if both := self.each.keys() & self.failed.keys():
            raise ValueError(f"items must be either marked or failed, got both for {', '.join(sorted(both))}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A picture that the model drew, for sheets."""

    prompt: str
    picture: UInt8[np.ndarray, "height width 3"]
    passed: bool | None
    """Whether the first judge passed it; None where that failed."""
    seen: str
    """What the first judge saw in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a benchmark found out."""

    marks: dict[str, Marks]
    """By score, in the order of the report; ``group/name`` is the score ``name`` in a group, which is itself no score.

    In the groups named above ``name`` is another score: ``second_judge/geneval/colors`` is ``geneval/colors`` by the
    second judge.
    """
    shown: dict[str, Shown] = field(default_factory=dict)
    """By item."""
    others: dict[str, float] = field(default_factory=dict)
    """Figures that are no mean of marks (an F1), by name."""


@runtime_checkable
class Benchmark(Protocol):
    """A frozen dataclass; its fields decide, with the workbench's seed, which items there are."""

    @property
    def name(self) -> str:
        """By which it is chosen; also the name of its file."""
        ...

    @property
    def number(self) -> int:
        """A field: most items of each task; the report may set it lower."""
        ...

    @property
    def is_judged(self) -> bool:
        """Whether it needs the judges of drawings."""
        ...

    def check(self) -> None:
        """Looks whether what it needs is there, before any work.

        Raises:
            ValueError: if it is not; names the package or path that is missing.
        """
        ...

    def run(self, bench: Workbench) -> Outcome:
        """Asks the model, and marks what it does."""
        ...


@runtime_checkable
class FileBenchmark(Benchmark, Protocol):
    """A benchmark of files that do not come with the project; it runs where the report is told their path."""

    @property
    def path(self) -> Path | None:
        """A field: the file or folder."""
        ...


def attempted(
    task: Callable[[Sequence[Item]], Sequence[Result]], items: Mapping[str, Item], batch_size: int
) -> tuple[dict[str, Result], dict[str, str]]:
    """Returns what a task makes of items, by their names, and why it failed of the others.

    A batch on which the task fails is given to it again item by item, so that one bad picture spoils no other.

    Args:
        task: returns one result for each item, in their order.
        items: by name.
        batch_size: items given to the task at a time.
    """
    results, failed, names = {}, {}, list(items)
    for start in range(0, len(names), batch_size):
        part = names[start : start + batch_size]
        try:
            results |= zip(part, task([items[name] for name in part]), strict=True)
        except Exception as error:  # whatever a judge may raise
            if len(part) == 1:
                failed[part[0]] = f"{type(error).__name__}: {error}"
            else:
                alone, why = attempted(task, {name: items[name] for name in part}, 1)
                results, failed = results | alone, failed | why
    return results, failed
