"""Rewards a picture that shows the objects asked for, in their places and on their ground, by a detector of its own.

The detector must be another than the judge's, trained apart: ``python -m rebus.train.detector --preset reward``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from rebus.data.captions import relation
from rebus.data.scenes import BACKGROUNDS, Scene
from rebus.evaluation.detector import SHIPPED_JUDGE, Detection, Detector
from rebus.model.saved import file_hash
from rebus.train.rewards.contract import Reward, check_weight

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ObjectsRewardConfig:
    """The mean of what a prompt says: the objects, how they stand to each other where that is asked, the ground."""

    detector: Path
    """Folder of a detector that judges nothing."""
    exact: float = 0.5
    """Share of the mark for objects that only a picture with those asked for and no others gets, in [0, 1]. Without it
    six frogs of seven are worth nearly as much as seven."""
    weight: float = 1.0
    """By which it is multiplied before all rewards are added."""

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if not 0 <= self.exact <= 1:
            raise ValueError(f"exact must be in [0, 1], got {self.exact}")

    def check(self) -> None:
        """Refuses the judge.

        Raises:
            ValueError: if the folder holds no detector, or the one that judges.
        """
        if not (self.detector / _WEIGHTS).is_file():
            raise ValueError(f"detector must be the folder of a trained detector, got {self.detector}")
        judge = SHIPPED_JUDGE / _WEIGHTS
        if judge.is_file() and file_hash(self.detector / _WEIGHTS) == file_hash(judge):
            raise ValueError(f"detector must be another than the judge that reports, got its weights: {self.detector}")

    def build(self) -> Reward:
        """Returns the function."""
        return ObjectsReward(Detector.load(self.detector), self.exact)


class ObjectsReward:
    """Compares what a detector finds with the scene that was asked for."""

    def __init__(self, detector: Detector, exact: float) -> None:
        self.detector, self.exact = detector, exact

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Image.Image],
        *,
        scene: Sequence[Scene],
        **_: Sequence[Any],
    ) -> list[float | None]:
        """Returns the share of the scene that is there, in [0, 1]."""
        del prompts
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in completions])
        found = self.detector.detect(rearrange(torch.from_numpy(pixels), "b h w c -> b c h w") / 255)
        return [agreement(*each, self.exact) for each in zip(scene, pixels, found, strict=True)]


def agreement(
    scene: Scene, picture: UInt8[np.ndarray, "height width 3"], objects: Sequence[Detection], exact: float
) -> float:
    """Returns the mean of the marks for objects, ground and, where it is asked for, place."""
    overlap = _overlap(scene, objects)
    marks = [(1 - exact) * overlap + exact * (overlap == 1), float(_ground(picture, objects) == scene.background)]
    if scene.task == "position":
        marks.append(float(_as_placed(scene, objects)))
    return sum(marks) / len(marks)


def _overlap(scene: Scene, objects: Sequence[Detection]) -> float:
    """Returns the share of objects, asked for or found, that are both (Dice)."""
    asked = Counter(item.concept_id for item in scene.items)
    found = Counter(one.concept_id for one in objects)
    return 2 * (asked & found).total() / (asked.total() + found.total())


def _as_placed(scene: Scene, objects: Sequence[Detection]) -> bool:
    """Whether the surest of each of the two objects stand as asked."""
    surest = {one.concept_id: one for one in sorted(objects, key=lambda one: one.score)}
    pair = [surest.get(item.concept_id) for item in scene.items]
    if pair[0] is None or pair[1] is None:
        return False
    right, down = pair[1].x - pair[0].x, pair[1].y - pair[0].y
    if abs(right) >= abs(down):
        return relation(*scene.items) == ("to the left of" if right > 0 else "to the right of")
    return relation(*scene.items) == ("above" if down > 0 else "below")


def _ground(picture: UInt8[np.ndarray, "height width 3"], objects: Sequence[Detection]) -> str:
    """Returns the colour that most pixels outside the objects are nearest to; of all pixels if objects fill it."""
    outside = np.ones(picture.shape[:2], dtype=bool)
    for one in objects:
        left, top = (max(0, round(centre - one.size / 2)) for centre in (one.x, one.y))
        outside[top : top + round(one.size), left : left + round(one.size)] = False
    pixels = picture[outside] if outside.any() else rearrange(picture, "h w rgb -> (h w) rgb")
    colors = np.array(list(BACKGROUNDS.values()))
    nearest = np.abs(pixels[:, None].astype(np.int32) - colors).sum(axis=2).argmin(axis=1)
    return tuple(BACKGROUNDS)[np.bincount(nearest).argmax()]
