"""The judges of a report: detectors from their folders, or the finder that learned nothing."""

from collections.abc import Sequence
from pathlib import Path

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_text import SceneSamples
from rebus.evaluation.detector import SHIPPED_JUDGE, Detector
from rebus.evaluation.judges import Judge, ObjectFinder
from rebus.evaluation.sign_reader import SignReader
from rebus.evaluation.sprite_finder import SpriteFinder
from rebus.model.saved import file_hash

SPRITES = "sprites"
"""Stands for ``SpriteFinder``, which has no folder."""


def load_judges(names: Sequence[str], samples: SceneSamples) -> tuple[Judge, ...]:
    """Returns the judges; all read signs with the same engine.

    Args:
        names: the folder of a detector for each, or ``sprites``.
        samples: what they will be asked about.

    Raises:
        ValueError: if a folder holds no detector, or one that does not know all that is asked for, or a package that
            judges is not installed.
    """
    finders = [_finder(name, samples) for name in names]
    reader = SignReader()
    return tuple(Judge(finder, reader, samples.pack) for finder in finders)


def shipped_judges() -> dict[str, Judge]:
    """Returns the shipped detector and the finder that learned nothing, by their names.

    Raises:
        ValueError: if a package that judges is not installed.
    """
    pack, reader = EmojiPack.open(), SignReader()
    finders = {"detector": Detector.load(SHIPPED_JUDGE), "sprite finder": SpriteFinder(pack, mini_concepts(pack))}
    return {name: Judge(finder, reader, pack) for name, finder in finders.items()}


def identity(name: str) -> str:
    """Returns what tells a judge from any other: the SHA-256 of what it has learned."""
    return name if name == SPRITES else file_hash(Path(name) / "model.safetensors")


def _finder(name: str, samples: SceneSamples) -> ObjectFinder:
    asked = samples.sampler.concepts
    if name == SPRITES:
        return SpriteFinder(samples.pack, asked)
    detector = Detector.load(Path(name))
    if unknown := set(asked) - set(detector.concepts):
        labels = ", ".join(sorted(samples.pack.concepts[concept].label for concept in unknown))
        raise ValueError(f"{name} must know all objects that are asked for, got none of {labels}")
    return detector
