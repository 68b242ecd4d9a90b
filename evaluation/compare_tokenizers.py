"""The fair comparison of image tokenizers: the same pictures and steps, language model, decoder and judges for each.

python -m rebus.evaluation.compare_tokenizers --recipes llamagen,titok --output runs/compare
python -m rebus.evaluation.compare_tokenizers --table tokenizers.md --plot tokenizers.png      # every recipe

Each recipe at mini size trains on emoji scenes; then a small language model learns to read and write its codes and a
diffusion decoder to paint them, and all is measured on held-out scenes. What is done is kept, so a comparison that was
stopped goes on where it stood, and a table can grow recipe by recipe.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rebus.evaluation.comparison_table import markdown, plot
from rebus.model.command_line import SHIPPED_MODEL, CommandParser
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.train.recipes.all import RECIPES

STAGES = ("tokenizer", "decoder", "pretrain")
_RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every recipe gets."""

    tokenizer_steps: int = 2000
    """Batches of 16 scenes from which the tokenizer learns."""
    decoder_steps: int = 600
    """Batches from which the diffusion decoder learns to paint its codes."""
    pretrain_steps: int = 600
    """Batches from which the language model learns its codes."""
    limit: int = 60
    """Prompts of each drawing task, questions, and captions; four times as many scenes are rebuilt."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Trial:
    """One recipe in a folder of its own."""

    recipe: str
    folder: Path
    budget: Budget

    def result(self) -> dict[str, Any]:
        """Returns the figures of the recipe, after whatever of it is still to be done.

        Raises:
            ValueError: if a stage fails, or the folder holds a trial with another budget.
        """
        path = self.folder / _RESULT
        if path.exists():
            found = json.loads(path.read_text())
            if found["budget"] != asdict(self.budget):
                raise ValueError(f"budget must be that of {path}, {found['budget']}, got {asdict(self.budget)}")
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds = {stage: self._train(stage) for stage in STAGES}
        figures = {"recipe": self.recipe, "budget": asdict(self.budget), **self._figures(), "seconds": seconds}
        path.with_suffix(".new").write_text(json.dumps(figures, indent=2) + "\n")
        path.with_suffix(".new").replace(path)
        return figures

    def _flags(self, stage: str) -> list[str]:
        """Returns the flags of a stage whose earlier stages are done."""
        steps = ["--run.steps", str(getattr(self.budget, f"{stage}_steps"))]
        if stage == "tokenizer":
            return ["--preset", self.recipe, *steps]
        made = ["--preset", "compared", *steps, "--image_tokenizer", str(self._export("tokenizer"))]
        if stage == "pretrain":
            return [*made, "--run.validate_every", str(self.budget.pretrain_steps)]
        on_grid = ImageTokenizer.load(self._export("tokenizer")).layout.kind == "grid"
        condition = "GridConditionConfig" if on_grid else "SequenceConditionConfig"
        return [*made, "--vae", str(SHIPPED_MODEL / "vae"), "--decoder.condition", condition]

    def _export(self, stage: str) -> Path:
        return self.folder / stage / "export"

    def _train(self, stage: str) -> float:
        """Trains a stage to its end, or goes on with it; returns the seconds that it took in all."""
        if not self._export(stage).exists():
            self._run(f"rebus.train.{stage}", [*self._flags(stage), "--run.output", str(self.folder / stage)])
        return self._last(stage, "seconds")

    def _last(self, stage: str, figure: str) -> float:
        """Returns the last value of a figure that a training told."""
        rows = (self.folder / stage / "metrics.jsonl").read_text().splitlines()
        return next(row[figure] for row in map(json.loads, reversed(rows)) if figure in row)

    def _run(self, module: str, flags: Sequence[str]) -> str:
        """Runs a command of the project and returns what it printed.

        Raises:
            ValueError: if it fails.
        """
        done = subprocess.run([sys.executable, "-m", module, *flags], capture_output=True, text=True)
        if done.returncode:
            told = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise ValueError(f"{self.recipe}: python -m {module} {' '.join(flags)} must succeed, got:\n{told}")
        return done.stdout

    def _figures(self) -> dict[str, Any]:
        """Returns what the trained parts can do."""
        tokenizer_path, model = self._export("tokenizer"), self.folder / "model"
        tokenizer = ImageTokenizer.load(tokenizer_path)
        self._run(
            "rebus.train.assemble",
            [
                *("--preset", "mini", "--output", str(model), "--settings.best_of", "1"),
                *("--language_model", str(self._export("pretrain")), "--image_tokenizer", str(tokenizer_path)),
                *("--decoder", str(self._export("decoder")), "--vae", str(SHIPPED_MODEL / "vae")),
            ],
        )
        limit = str(self.budget.limit)
        measured = ("--image_tokenizer", str(tokenizer_path), "--limit", str(4 * self.budget.limit), "--json")
        rebuilt = self._json("rebus.evaluation.reconstruction", [*measured, "--perceptual"])
        statistics = self._json("rebus.evaluation.token_statistics", measured)
        report = self._json(
            "rebus.evaluation.report",
            ["--model", str(model), "--benchmarks", "drawing,vqa,captions", "--limit", limit, "--json"],
        )
        bits = sum(math.log2(stream.size) for stream in tokenizer.layout.streams)
        return {
            "num_codes": rebuilt["num_positions"] * len(tokenizer.layout.streams),
            "bits": rebuilt["num_positions"] * bits,
            "rebuilt": rebuilt,
            "statistics": statistics,
            "language_loss": self._last("pretrain", "validation/code_loss"),
            "report": report,
        }

    def _json(self, module: str, flags: Sequence[str]) -> dict[str, Any]:
        return json.loads(self._run(module, flags).splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    """Compares the recipes that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--recipes", help="presets of rebus.train.tokenizer, as llamagen,titok (default: all recipes)")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="folder of all trainings")
    for name, default in asdict(Budget()).items():
        what = "prompts of each drawing task, questions and captions" if name == "limit" else "batches of that stage"
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} for each recipe (default: {default})")
    parser.add_argument("--table", type=Path, help="file for the table (.md)")
    parser.add_argument("--plot", type=Path, help="file for the picture (.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    console, began = Console(stderr=True), time.monotonic()
    results = []
    with parser.refusing():
        budget = Budget(**{name: getattr(options, name) for name in asdict(Budget())})
        recipes = options.recipes.split(",") if options.recipes else list(RECIPES)
        if unknown := [name for name in recipes if name not in RECIPES]:
            raise ValueError(f"recipes must be among {', '.join(RECIPES)}, got {', '.join(unknown)}")
        for flag in ("table", "plot"):
            if (file := getattr(options, flag)) is not None and not file.parent.is_dir():
                raise ValueError(f"--{flag} must be a file in a folder that exists, got {file}")
        for number, recipe in enumerate(recipes, 1):
            minutes = (time.monotonic() - began) / 60
            with console.status(f"{recipe}, {number} of {len(recipes)}, {minutes:.0f} minutes so far"):
                results.append(Trial(recipe, options.output / recipe, budget).result())
            console.print(f"{recipe}: {sum(results[-1]['seconds'].values()) / 60:.1f} minutes of training")
        table = markdown(results)
        if options.table is not None:
            options.table.write_text(table)
        if options.plot is not None:
            plot(results, options.plot)
    print(table)
    if options.json:
        print(json.dumps({"budget": asdict(budget), "recipes": {one["recipe"]: one for one in results}}))


if __name__ == "__main__":
    main()
