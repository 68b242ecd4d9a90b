"""Says whether a drawing shows what its prompt asked for, by rules on what a detector and a reader find in it.

Source: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment",
https://arxiv.org/abs/2310.11513, sec. 3.
Differs: the detector is our own, counting allows no other object beside those counted, and a sign is read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from rebus.data.captions import relation
from rebus.data.emoji import EmojiPack
from rebus.data.scenes import BACKGROUNDS, Scene
from rebus.evaluation.detector import Detection

_NEAR_PX = 16
"""Two centres closer than this along the asked direction are side by side in neither order."""


@dataclass(frozen=True)
class Verdict:
    """Whether a drawing passed, and what was seen."""

    passed: bool
    seen: str


@runtime_checkable
class ObjectFinder(Protocol):
    """Finds the objects of pictures, as a ``Detector`` does."""

    def detect(self, images: Float[Tensor, "batch 3 height width"]) -> list[list[Detection]]:
        """Returns the objects of each picture in [0, 1]."""
        ...


@runtime_checkable
class WordReader(Protocol):
    """Reads the lines of text in a picture, as a ``SignReader`` does."""

    def read(self, picture: UInt8[np.ndarray, "height width 3"]) -> list[str]:
        """Returns the lines."""
        ...


class Judge:
    """Judges drawings by the task of the scene that was asked for."""

    def __init__(self, finder: ObjectFinder, reader: WordReader, pack: EmojiPack) -> None:
        self.finder, self.reader, self.pack = finder, reader, pack

    def verdicts(self, scenes: Sequence[Scene], pictures: UInt8[np.ndarray, "batch height width 3"]) -> list[Verdict]:
        """Returns one verdict for each scene asked for and the picture drawn for it."""
        found = self.finder.detect(rearrange(torch.from_numpy(pictures), "b h w c -> b c h w") / 255)
        return [self._verdict(*each) for each in zip(scenes, pictures, found, strict=True)]

    def _verdict(self, scene: Scene, picture: np.ndarray, objects: list[Detection]) -> Verdict:
        if scene.task == "background":
            color = background_color(picture, objects)
            return Verdict(color == scene.background, f"{color} background")
        if scene.task == "sign":
            lines = [_letters(line) for line in self.reader.read(picture)]
            return Verdict(scene.sign in lines, f"reads {' / '.join(lines) or 'nothing'}")
        passed = {"one": _all_there, "two": _all_there, "count": _as_many, "position": _as_placed}[scene.task]
        return Verdict(passed(scene, objects), self._listed(objects))

    def _listed(self, objects: list[Detection]) -> str:
        counts = Counter(self.pack.concepts[one.concept_id].name for one in objects)
        return ", ".join(name.counted(number) for name, number in counts.items()) or "nothing"


def background_color(picture: UInt8[np.ndarray, "height width 3"], objects: list[Detection]) -> str:
    """Returns the named colour nearest to the median of the pixels outside all objects, or of the rim if none are."""
    height, width = picture.shape[:2]
    empty = np.ones((height, width), dtype=bool)
    for one in objects:
        top, left = max(0, round(one.y - one.size / 2)), max(0, round(one.x - one.size / 2))
        empty[top : top + round(one.size), left : left + round(one.size)] = False
    if empty.mean() < 0.02:
        empty[[0, -1]] = empty[:, [0, -1]] = True
    median = np.median(picture[empty], axis=0)
    distances = {name: float(np.abs(median - np.array(color)).sum()) for name, color in BACKGROUNDS.items()}
    return min(distances, key=distances.__getitem__)


def _all_there(scene: Scene, objects: list[Detection]) -> bool:
    return {item.concept_id for item in scene.items} <= {one.concept_id for one in objects}


def _as_many(scene: Scene, objects: list[Detection]) -> bool:
    return Counter(item.concept_id for item in scene.items) == Counter(one.concept_id for one in objects)


def _as_placed(scene: Scene, objects: list[Detection]) -> bool:
    """Whether both are there, the asked direction is the main one, and it points the right way."""
    if not _all_there(scene, objects):
        return False
    first, second = (
        max((o for o in objects if o.concept_id == item.concept_id), key=lambda o: o.score) for item in scene.items
    )
    right, down = second.x - first.x, second.y - first.y
    along, across = {
        "to the left of": (right, down),
        "to the right of": (-right, down),
        "above": (down, right),
        "below": (-down, right),
    }[relation(*scene.items)]
    return along >= _NEAR_PX and along > abs(across)


def _letters(line: str) -> str:
    return "".join(letter for letter in line.upper() if letter.isalnum())
