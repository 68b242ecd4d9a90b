"""Draws the pictures planned for prompts into a folder, and goes on where it was broken off.

What is in the folder is never drawn again, so it says by whom it was drawn, and none but the same may go on.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from rebus.evaluation.benchmark import Drawn, Workbench, attempted
from rebus.evaluation.prompt_sets.contract import PlannedPicture

DRAWN_BY = "drawn_by.json"
"""File in the folder that says what drew its pictures."""


Pictures = Mapping[str, np.ndarray]
"""Red, green and blue of height by width pixels, by the ids of planned pictures."""


@runtime_checkable
class Drawer(Protocol):
    """Draws prompts, as a ``Rebus`` does."""

    def check(self, prompts: Sequence[str]) -> object:
        """Refuses prompts that cannot be drawn with a ``ValueError``."""
        ...

    def draw(self, prompts: Sequence[str], *, seed: Sequence[int]) -> Sequence[Drawn]:
        """Returns one drawing for each prompt."""
        ...


def drawn(bench: Workbench, plan: Sequence[PlannedPicture]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the pictures that the model draws, by their ids, and why there is none for the others."""

    def drawings(part: Sequence[PlannedPicture]) -> list[np.ndarray]:
        bench.say(f"drawing: {part[0].text}")
        made = bench.model.draw([one.text for one in part], seed=[bench.seed + one.seeds[0] for one in part])
        return [np.asarray(one.image) for one in made]

    assert all(len(one.seeds) == 1 for one in plan), "a grid is no picture that can be judged"
    return attempted(drawings, {one.id: one for one in plan}, bench.batch_size)


def drawable(model: Drawer, plan: Sequence[PlannedPicture]) -> tuple[list[PlannedPicture], dict[str, str]]:
    """Returns the pictures that the model can be asked for, and why not for the others, by their prompts' ids."""
    refused: dict[str, str] = {}
    for picture in {picture.prompt_id: picture for picture in plan}.values():
        try:
            model.check([picture.text])
        except ValueError as error:
            refused[picture.prompt_id] = str(error)
    return [picture for picture in plan if picture.prompt_id not in refused], refused


def draw_planned(
    model: Drawer,
    plan: Sequence[PlannedPicture],
    folder: Path,
    drawn_by: Mapping[str, Any],
    *,
    batch_size: int = 16,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Draws those of the pictures that are not in the folder.

    Args:
        model: what draws.
        plan: what to draw, and where in the folder to put it.
        folder: made if it is not there.
        drawn_by: all that the pictures depend on beside their prompts and seeds; written down, and compared.
        batch_size: drawings made at a time.
        say: is told what is under way.

    Raises:
        ValueError: if another has drawn what is in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, drawn_by)
    missing = [picture for picture in plan if not (folder / picture.file).is_file()]
    wanted = [(picture, seed) for picture in missing for seed in picture.seeds]
    drawn: list[Image.Image] = []
    for start in range(0, len(wanted), batch_size):
        say(f"drawing {start + 1} to {min(start + batch_size, len(wanted))} of {len(wanted)}")
        part = wanted[start : start + batch_size]
        made = model.draw([picture.text for picture, _ in part], seed=[seed for _, seed in part])
        drawn += [one.image for one in made]
        while missing and len(drawn) >= len(missing[0].seeds):
            picture, missing = missing[0], missing[1:]
            _write(folder, picture, drawn[: len(picture.seeds)])
            drawn = drawn[len(picture.seeds) :]


def square_grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns pictures of one size as a square, row by row; a single one as it is."""
    side = math.isqrt(len(pictures))
    assert side**2 == len(pictures), "a square has a square number of places"
    width, height = pictures[0].size
    grid = Image.new("RGB", (side * width, side * height))
    for index, one in enumerate(pictures):
        grid.paste(one, (index % side * width, index // side * height))
    return grid


def _claim(folder: Path, drawn_by: Mapping[str, Any]) -> None:
    path, text = folder / DRAWN_BY, json.dumps(drawn_by, indent=1, sort_keys=True) + "\n"
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{folder} must be empty or hold pictures drawn alike, got others: see {path}")
    elif any(folder.iterdir()):
        raise ValueError(f"{folder} must be empty or hold pictures drawn alike, got files without {DRAWN_BY}")
    else:
        path.write_text(text, encoding="utf-8")


def _write(folder: Path, picture: PlannedPicture, drawn: Sequence[Image.Image]) -> None:
    """Writes a picture last and at once, so that one that is there is whole and has all that belongs to it."""
    path = folder / picture.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.beside is not None:
        (folder / picture.beside[0]).write_text(picture.beside[1], encoding="utf-8")
    unfinished = folder / "unfinished"
    square_grid(drawn).save(unfinished, format="PNG")
    os.replace(unfinished, path)
