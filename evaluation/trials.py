"""Has judges look at what arms of an experiment, ways to draw, make of the same held-out prompts.

Every model of every arm draws the same prompts from the same seeds. What is judged is kept in a folder for each, so an
evaluation that was stopped goes on where it stood.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import Scene
from rebus.evaluation.arm_scores import Marks, arm_figures
from rebus.evaluation.benchmark import attempted
from rebus.evaluation.drawing_benchmark import DRAWING_TASKS
from rebus.evaluation.judges import Judge
from rebus.model.drawing_files import write_whole
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel

_JUDGED = "judged.json"
_PER_PICTURE = "_per_picture"
_SHEET_COLUMNS = 12


Costs = Mapping[str, float]
"""``seconds`` that drawing and painting took, and what else an arm counts."""


@dataclass(frozen=True)
class Drawn:
    """Pictures, and what they took."""

    pictures: list[Image.Image]
    costs: Costs
    """Of all together."""


@runtime_checkable
class Arm(Protocol):
    """One way to draw."""

    @property
    def models(self) -> tuple[Path, ...]:
        """Folders of saved models, one of each seed of the training."""
        ...

    def settings(self) -> dict[str, Any]:
        """Returns what decides beside the model how it draws, as plain values."""
        ...

    def draw(self, model: Rebus, prompts: Sequence[str], seeds: Sequence[int]) -> Drawn:
        """Returns a picture for each prompt."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArmsConfig:
    """What is compared, and on how much."""

    arms: Mapping[str, Arm]
    """By the names that the table gives them; gains are told over the first."""
    num_prompts: int = 80
    """Of each drawing task."""
    batch_size: int = 16
    """Prompts drawn at a time."""
    output: Path = Path("runs/arms")
    """Folder of everything that is found."""

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("arms must be at least one, got none")
        for name in ("num_prompts", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def compare(config: ArmsConfig, judges: dict[str, Judge], say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the figures of all arms by each judge, after whatever of the drawing is still to be done.

    Raises:
        ValueError: if an arm cannot be read, or the folder of the output holds other arms.
    """
    pack = EmojiPack.open()
    samples = SceneSamples(SceneSampler(pack, mini_concepts(pack), "held_out"))
    asked = {
        name: [samples.prompt(random.Random(f"arms/{task}/{index}"), task) for index in range(config.num_prompts)]
        for name, task in DRAWING_TASKS.items()
    }
    trials = {
        name: [
            Trial(config, arm, path, config.output / _file_name(name) / str(number))
            for number, path in enumerate(arm.models)
        ]
        for name, arm in config.arms.items()
    }
    for one in (one for several in trials.values() for one in several):
        one.kept(judges)  # refuses what is wrong with any of them before any work
    found = {
        name: [one.judged(asked, judges, lambda task, name=name: say(f"{name}: {task}")) for one in several]
        for name, several in trials.items()
    }
    marks: dict[str, dict[str, Marks]] = {
        judge: {
            name: {task: np.array([one["marks"][judge][task] for one in models], dtype=float) for task in asked}
            for name, models in found.items()
        }
        for judge in judges
    }
    costs = [cost for cost in next(iter(found.values()))[0] if cost.endswith(_PER_PICTURE)]
    taken = {
        cost: {name: float(np.mean([one[cost] for one in some])) for name, some in found.items()} for cost in costs
    }
    return {"judges": {judge: arm_figures(by_arm) for judge, by_arm in marks.items()}, **taken}


Judged = dict[str, Any]
"""``marks`` by judge and task, one of each prompt; ``seconds_per_picture``, and so on for all costs of its arm."""


@dataclass(frozen=True)
class Trial:
    """One model of an arm, and the folder of what it drew."""

    config: ArmsConfig
    arm: Arm
    model: Path
    folder: Path

    def judged(
        self, asked: dict[str, list[tuple[Scene, str]]], judges: dict[str, Judge], say: Callable[[str], None]
    ) -> Judged:
        """Returns the marks of its drawings; those of an earlier call, if there was one.

        Raises:
            ValueError: as ``kept``.
        """
        if found := self.kept(judges):
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        marks: dict[str, dict[str, list[bool | None]]] = {judge: {} for judge in judges}
        model, costs = Rebus.load(self.model), {}
        for task, pairs in asked.items():
            say(task)
            pictures, taken = self._drawn(model, [prompt for _, prompt in pairs])
            costs = _sum(costs, taken)
            for name, judge in judges.items():
                marks[name][task] = self._passed(judge, [scene for scene, _ in pairs], pictures)
            _sheet(pictures).save(self.folder / f"{task}.png")
        number = sum(map(len, asked.values()))
        each = {f"{name}{_PER_PICTURE}": cost / number for name, cost in costs.items()}
        told = {"settings": self._settings(judges), "marks": marks, **each}
        write_whole({self.folder / _JUDGED: (json.dumps(told) + "\n").encode()})
        return told

    def kept(self, judges: dict[str, Judge]) -> Judged | None:
        """Returns what an earlier call with the same settings found; None if there was none.

        Raises:
            ValueError: if there is no such model, or the folder holds marks of something else.
        """
        path, settings = self.folder / _JUDGED, self._settings(judges)
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        if found["settings"] != settings:
            raise ValueError(f"{path} must be of {settings}, got {found['settings']}; choose another output")
        return found

    def _settings(self, judges: dict[str, Judge]) -> dict[str, Any]:
        return {
            **self.arm.settings(),
            "model": SavedModel.open(self.model).hash,
            "num_prompts": self.config.num_prompts,
            "judges": sorted(judges),
        }

    def _passed(
        self, judge: Judge, scenes: Sequence[Scene], pictures: UInt8[np.ndarray, "batch height width 3"]
    ) -> list[bool | None]:
        """Returns whether each picture shows its scene; None where the judge failed."""

        def verdicts(part: Sequence[int]) -> list[bool]:
            return [one.passed for one in judge.verdicts([scenes[row] for row in part], pictures[list(part)])]

        found, _ = attempted(verdicts, {str(row): row for row in range(len(scenes))}, self.config.batch_size)
        return [found.get(str(row)) for row in range(len(scenes))]

    def _drawn(self, model: Rebus, prompts: Sequence[str]) -> tuple[UInt8[np.ndarray, "batch height width 3"], Costs]:
        """Returns a picture for each prompt, and what all of them took."""
        pictures, costs = [], {}
        for start in range(0, len(prompts), self.config.batch_size):
            part = prompts[start : start + self.config.batch_size]
            drawn = self.arm.draw(model, part, range(start, start + len(part)))
            pictures += map(np.asarray, drawn.pictures)
            costs = _sum(costs, drawn.costs)
        return np.stack(pictures), costs


def _sum(costs: Costs, more: Costs) -> Costs:
    return {name: costs.get(name, 0.0) + value for name, value in more.items()}


def _sheet(pictures: UInt8[np.ndarray, "batch height width 3"]) -> Image.Image:
    """Returns pictures in rows."""
    missing = -len(pictures) % _SHEET_COLUMNS
    filled = np.concatenate([pictures, np.full((missing, *pictures.shape[1:]), 255, dtype=np.uint8)])
    return Image.fromarray(rearrange(filled, "(rows columns) h w c -> (rows h) (columns w) c", columns=_SHEET_COLUMNS))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
