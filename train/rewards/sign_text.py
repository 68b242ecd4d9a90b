"""Rewards a sign that says what was asked for, read letter by letter by comparison with the letters as they are drawn.

It is not the reader that reports (RapidOCR): nothing in it was learned, and it knows no words. It knows where letters
stand in a scene, so it reads signs of scenes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from string import ascii_uppercase
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from PIL import Image

from rebus.data.scenes import LATTICE_PX, SCENE_SIZE_PX, SIGN_HEIGHT_PX, Scene, letter_shape
from rebus.train.rewards.contract import Reward, check_weight

_RIM_PX = 4
"""Rows at the upper and lower edge of a sign that are not looked at: its frame."""
_SHIFTS_PX = (-2, -1, 0, 1, 2)
"""How far a painted letter may be from its place."""
_LEAST_LIKENESS = 0.6
"""Correlation with the likeliest letter from which on it is one."""
_LEAST_CONTRAST = 25.0
"""Standard deviation of the pixels of a cell that is not empty, of 255."""
_UNREADABLE = "?"


@dataclass(frozen=True, kw_only=True)
class SignRewardConfig:
    """The share of the sign's letters that are right; of prompts that ask for a sign."""

    weight: float = 1.0
    """By which it is multiplied before all rewards are added."""

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def check(self) -> None:
        """Needs nothing."""

    def build(self) -> Reward:
        """Returns the function."""
        return sign_reward


def sign_reward(
    prompts: Sequence[str], completions: Sequence[Image.Image], *, scene: Sequence[Scene], **_: Sequence[Any]
) -> list[float | None]:
    """Returns how like the word on each picture's sign is to that of its scene: 1 is the same, 0 has no letter of it.

    Raises:
        ValueError: if a picture has not the size of a scene.
    """
    del prompts
    return [
        None if asked.sign is None else SequenceMatcher(None, asked.sign, read_sign(picture)).ratio()
        for asked, picture in zip(scene, completions, strict=True)
    ]


def read_sign(picture: Image.Image) -> str:
    """Returns the word at the top or at the bottom of a scene, ``?`` for each cell with anything but a letter.

    Raises:
        ValueError: if the picture has not the size of a scene.
    """
    if picture.size != (SCENE_SIZE_PX, SCENE_SIZE_PX):
        raise ValueError(f"a picture must be a scene of {SCENE_SIZE_PX} px to have its sign read, got {picture.size}")
    pixels = np.asarray(picture.convert("L"), dtype=np.float32)
    lines = [_line(pixels[top : top + SIGN_HEIGHT_PX]) for top in (0, SCENE_SIZE_PX - SIGN_HEIGHT_PX)]
    return max(lines, key=lambda line: sum(letter in ascii_uppercase for letter in line))


def _line(strip: Float[np.ndarray, "height width"]) -> str:
    """Returns what the cells of a strip hold, without the empty ones around it."""
    cells = rearrange(strip[_RIM_PX:-_RIM_PX], "height (cells width) -> cells (height width)", width=LATTICE_PX)
    likeness = _normed(cells) @ _letters().T
    best = likeness.argmax(axis=1)
    letters = [
        " "
        if contrast < _LEAST_CONTRAST
        else ascii_uppercase[index // len(_SHIFTS_PX) ** 2]
        if row[index] >= _LEAST_LIKENESS
        else _UNREADABLE
        for row, index, contrast in zip(likeness, best, cells.std(axis=1), strict=True)
    ]
    return "".join(letters).strip()


@cache
def _letters() -> Float[np.ndarray, "shapes pixels"]:
    """Returns each letter as it looks in a cell at each shift, normed."""
    shapes = []
    for letter in ascii_uppercase:
        cell = 255 - np.asarray(letter_shape(letter), dtype=np.float32)
        for down in _SHIFTS_PX:
            for right in _SHIFTS_PX:
                moved = np.roll(cell, (down, right), axis=(0, 1))
                shapes.append(moved[_RIM_PX:-_RIM_PX].ravel())
    return _normed(np.stack(shapes))


def _normed(rows: Float[np.ndarray, "rows pixels"]) -> Float[np.ndarray, "rows pixels"]:
    """Returns rows of mean 0 and length 1, so that a product of two is their correlation."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-6)
