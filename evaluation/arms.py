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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from rebus.evaluation.arm_tables import markdown, plot
from rebus.evaluation.chosen_judges import shipped_judges
from rebus.evaluation.trials import ArmsConfig, Drawn, compare
from rebus.model.command_line import SHIPPED_MODEL, CommandParser
from rebus.model.rebus import Rebus


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

    def settings(self) -> dict[str, Any]:
        """Returns what decides beside the model how it draws."""
        return {name: value for name, value in asdict(self).items() if name != "models"}

    def draw(self, model: Rebus, prompts: Sequence[str], seeds: Sequence[int]) -> Drawn:
        """Returns a picture for each prompt, and the seconds that language model and decoder took."""
        settings = {"best_of": self.best_of, "guidance": self.guidance, "temperature": self.temperature}
        drawings = model.draw(prompts, seed=seeds, **settings)
        taken = drawings[0].statistics
        seconds = taken.language_model_seconds + taken.decoder_seconds
        return Drawn([one.image for one in drawings], {"seconds": seconds})


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
        judges = shipped_judges()
        with console.status("") as status:
            figures = compare(config, judges, status.update)
    table = markdown(figures)
    (config.output / "arms.json").write_text(json.dumps(figures, indent=1) + "\n")
    (config.output / "arms.md").write_text(table)
    plot(figures, config.output / "arms.png")
    print(table)


if __name__ == "__main__":
    main()
