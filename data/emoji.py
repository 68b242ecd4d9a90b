"""The emoji pack: 1,564 concepts in three art styles, with names that are right English.

The pack is one zip file, ``assets/emoji.zip``: a picture of 128 by 128 pixels with transparency for every concept and
style, and ``meta.json`` with labels and tags. ``assets/rebuild_emoji.py`` makes it.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rebus.data.english import Name, name_of_label

STYLES = ("3d", "flat", "noto")
STYLE_PHRASES = {"3d": "in 3D style", "flat": "in flat style", "noto": "in Noto style"}
SOURCE_SIZE_PX = 128

_FOLDERS = {"3d": "fluent3d", "flat": "flat", "noto": "noto"}
_DEFAULT_PATH = Path(__file__).parent.parent / "assets" / "emoji.zip"


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn."""

    id: str
    """Code points in hexadecimal, joined by ``-``: the name of the picture files."""
    label: str
    """Name in the Unicode CLDR, such as ``ear of corn``."""
    name: Name
    """English noun phrase with its article and plural."""
    tags: tuple[str, ...]
    group: str
    subgroup: str


class EmojiPack:
    """Concepts by id, and their pictures at any size."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        entries = json.loads(archive.read("meta.json"))
        self.concepts: dict[str, Concept] = {entry["id"]: _concept(entry) for entry in entries}
        self._by_label = {concept.label: concept for concept in self.concepts.values()}
        self._sprite = lru_cache(maxsize=8192)(self._load_sprite)

    @classmethod
    def open(cls, path: Path | str | None = None) -> "EmojiPack":
        """Returns the pack in the zip file ``path``, by default the one that ships with the project."""
        return cls(zipfile.ZipFile(path or _DEFAULT_PATH))

    def find(self, label: str) -> Concept:
        """Returns the concept with this CLDR label.

        Raises:
            ValueError: if no concept has this label.
        """
        if label not in self._by_label:
            raise ValueError(f"label must be that of a concept in the pack, got {label!r}")
        return self._by_label[label]

    def sprite(self, concept_id: str, style: str, size_px: int) -> UInt8[np.ndarray, "size size 4"]:
        """Returns a picture with transparency (red, green, blue, opacity); it is shared, so do not write to it.

        Raises:
            ValueError: if the concept or the style is not in the pack.
        """
        if concept_id not in self.concepts:
            raise ValueError(f"concept_id must be in the pack, got {concept_id!r}")
        if style not in STYLES:
            raise ValueError(f"style must be one of {STYLES}, got {style!r}")
        return self._sprite(concept_id, style, size_px)

    def _load_sprite(self, concept_id: str, style: str, size_px: int) -> np.ndarray:
        with Image.open(io.BytesIO(self._archive.read(f"{_FOLDERS[style]}/{concept_id}.webp"))) as image:
            pixels = image.convert("RGBA")
        if size_px != SOURCE_SIZE_PX:
            pixels = pixels.resize((size_px, size_px), Image.Resampling.LANCZOS)
        sprite = np.asarray(pixels)
        sprite.flags.writeable = False
        return sprite


def _concept(entry: dict) -> Concept:
    return Concept(
        id=entry["id"],
        label=entry["label"],
        name=name_of_label(entry["label"]),
        tags=tuple(entry["tags"]),
        group=entry["group"],
        subgroup=entry["subgroup"],
    )
