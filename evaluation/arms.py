r"""Judges the arms of an experiment, ways to draw better for the same compute, on the same held-out prompts.

python -m rebus.evaluation.arms --arms docs/results/rl_arms.json --output runs/arms

An arm is one saved model or several, trained alike from several seeds, and how it draws:

{"SFT": {}, "best of 8": {"best_of": 8}, "RL": {"models": ["runs/rl/0/model", "runs/rl/1/model"]}}

Every model of every arm draws the same prompts from the same seeds; what is judged is kept in ``--output``, so an
evaluation that was stopped goes on where it stood. There come scores, intervals and gains over the first arm
(``arms.json``), the same as a table (``arms.md``) and as a picture (``arms.png``), and for each model a sheet of its
drawings.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import Scene
from rebus.evaluation.arm_scores import Marks, arm_figures
from rebus.evaluation.arm_tables import markdown, plot
from rebus.evaluation.benchmark import attempted
from rebus.evaluation.detector import SHIPPED_JUDGE, Detector
from rebus.evaluation.drawing_benchmark import DRAWING_TASKS
from rebus.evaluation.judges import Judge
from rebus.evaluation.sign_reader import SignReader
from rebus.evaluation.sprite_finder import SpriteFinder
from rebus.model.command_line import SHIPPED_MODEL, CommandParser
from rebus.model.drawing_files import write_whole
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel

_JUDGED = "judged.json"
_SHEET_COLUMNS = 12


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One way to draw."""

    models: tuple[Path, ...] = (SHIPPED_MODEL,)
    """Folders of saved models, one of each seed of the training."""
    best_of: int = 1
    """Drafts of each picture."""
    guidance: float = 1.5
    """How far to go from what the model draws unasked to what it draws when asked; 1 is none."""
    temperature: float = 0.7
    """Spread of the codes."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models must be at least one, got none")


@dataclass(frozen=True, kw_only=True)
class ArmsConfig:
    """What is compared, and on how much."""

    arms: dict[str, ArmConfig]
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
    seconds = {name: float(np.mean([one["seconds_per_picture"] for one in models])) for name, models in found.items()}
    return {"judges": {judge: arm_figures(by_arm) for judge, by_arm in marks.items()}, "seconds_per_picture": seconds}


Judged = dict[str, Any]
"""``marks`` by judge and task, one of each prompt; ``seconds_per_picture`` that drawing and painting took."""


@dataclass(frozen=True)
class Trial:
    """One model of an arm, and the folder of what it drew."""

    config: ArmsConfig
    arm: ArmConfig
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
        model, seconds = Rebus.load(self.model), 0.0
        for task, pairs in asked.items():
            say(task)
            pictures, spent = self._drawn(model, [prompt for _, prompt in pairs])
            seconds += spent
            for name, judge in judges.items():
                marks[name][task] = self._passed(judge, [scene for scene, _ in pairs], pictures)
            _sheet(pictures).save(self.folder / f"{task}.png")
        number = sum(map(len, asked.values()))
        told = {"settings": self._settings(judges), "marks": marks, "seconds_per_picture": seconds / number}
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
        chosen = {key: value for key, value in asdict(self.arm).items() if key != "models"}
        return {
            **chosen,
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

    def _drawn(self, model: Rebus, prompts: Sequence[str]) -> tuple[UInt8[np.ndarray, "batch height width 3"], float]:
        """Returns a picture for each prompt, and the seconds that language model and decoder took."""
        pictures, seconds = [], 0.0
        chosen = {"best_of": self.arm.best_of, "guidance": self.arm.guidance, "temperature": self.arm.temperature}
        for start in range(0, len(prompts), self.config.batch_size):
            part = prompts[start : start + self.config.batch_size]
            drawings = model.draw(part, seed=range(start, start + len(part)), **chosen)
            pictures += [np.asarray(one.image) for one in drawings]
            seconds += drawings[0].statistics.language_model_seconds + drawings[0].statistics.decoder_seconds
        return np.stack(pictures), seconds


def read_arms(file: Path) -> dict[str, ArmConfig]:
    """Returns the arms that a JSON file names.

    Raises:
        ValueError: if it cannot be read, names no arm, or an arm has a setting that there is not.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} must be a JSON file, got {error}") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{file} must name at least one arm, as in --help, got {values!r}")
    known = [each.name for each in fields(ArmConfig)]
    arms = {}
    for name, settings in values.items():
        if not isinstance(settings, dict) or (set(settings) - set(known)):
            raise ValueError(f"{file}: settings of {name} must be among {', '.join(known)}, got {settings}")
        models = settings.pop("models", [str(SHIPPED_MODEL)])
        if not isinstance(models, list) or not all(isinstance(path, str) for path in models):
            raise ValueError(f"{file}: models of {name} must be a list of folders, got {models}")
        if wrong := {key: value for key, value in settings.items() if type(value) not in (int, float)}:
            raise ValueError(f"{file}: settings of {name} must be numbers, got {wrong}")
        arms[name] = ArmConfig(models=tuple(map(Path, models)), **settings)
    return arms


def arm_judges() -> dict[str, Judge]:
    """Returns the two judges, which no reward knows."""
    pack, reader = EmojiPack.open(), SignReader()
    finders = {"detector": Detector.load(SHIPPED_JUDGE), "sprite finder": SpriteFinder(pack, mini_concepts(pack))}
    return {name: Judge(finder, reader, pack) for name, finder in finders.items()}


def main(argv: list[str] | None = None) -> None:
    """Compares the arms that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--arms", type=Path, required=True, help="JSON file of the arms; gains are told over the first")
    parser.add_argument("--num_prompts", type=int, default=80, help="of each drawing task (default: 80)")
    parser.add_argument("--output", type=Path, default=Path("runs/arms"), help="folder of all that is found")
    options = parser.parse(argv)
    console = Console(stderr=True)
    with parser.refusing():
        config = ArmsConfig(arms=read_arms(options.arms), num_prompts=options.num_prompts, output=options.output)
        with console.status("") as status:
            figures = compare(config, arm_judges(), status.update)
    table = markdown(figures)
    (config.output / "arms.json").write_text(json.dumps(figures, indent=1) + "\n")
    (config.output / "arms.md").write_text(table)
    plot(figures, config.output / "arms.png")
    print(table)


def _sheet(pictures: UInt8[np.ndarray, "batch height width 3"]) -> Image.Image:
    """Returns pictures in rows."""
    missing = -len(pictures) % _SHEET_COLUMNS
    filled = np.concatenate([pictures, np.full((missing, *pictures.shape[1:]), 255, dtype=np.uint8)])
    return Image.fromarray(rearrange(filled, "(rows columns) h w c -> (rows h) (columns w) c", columns=_SHEET_COLUMNS))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


if __name__ == "__main__":
    main()
