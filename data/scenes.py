"""Composed scenes: emoji on a coloured ground, perhaps with a sign, and what they look like in pixels.

A scene is 128 by 128 pixels, and every box in it (position, size, the sign's board and its letters) lies on a lattice
of 16 pixels, so that what a tokenizer with patches of 16 pixels sees of an object does not depend on where it stands.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from rebus.data.emoji import STYLES, EmojiPack

SCENE_SIZE_PX = 128
LATTICE_PX = 16
SIGN_HEIGHT_PX = 32
TASKS = ("one", "two", "count", "position", "background", "sign")
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "black": (20, 20, 20),
    "red": (220, 50, 50),
    "orange": (255, 150, 40),
    "yellow": (255, 230, 90),
    "green": (70, 185, 80),
    "blue": (70, 120, 230),
    "purple": (150, 80, 200),
    "pink": (255, 170, 205),
}
"""Ground colours by name: red, green and blue in 0..255."""


@dataclass(frozen=True)
class Item:
    """One object: its concept, and the left, top and size of its square box in pixels."""

    concept_id: str
    x: int
    y: int
    size: int

    def __post_init__(self):
        for field in ("x", "y", "size"):
            if getattr(self, field) % LATTICE_PX:
                raise ValueError(f"{field} must be a multiple of {LATTICE_PX}, got {getattr(self, field)}")
        if min(self.x, self.y) < 0 or max(self.x, self.y) + self.size > SCENE_SIZE_PX or self.size <= 0:
            raise ValueError(f"an item must lie inside {SCENE_SIZE_PX} px, got {self.x}, {self.y}, size {self.size}")


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows; all its facts can be read off these fields."""

    items: tuple[Item, ...]
    style: str
    background: str
    sign: str | None
    """Word of 3 to 7 capital letters, or none."""
    task: str
    """What the scene is about: one of ``TASKS``."""
    sign_on_top: bool = False
    """Whether the sign's board is at the top; else it is at the bottom."""

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {TASKS}, got {self.task!r}")
        if self.style not in STYLES:
            raise ValueError(f"style must be one of {STYLES}, got {self.style!r}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {tuple(BACKGROUNDS)}, got {self.background!r}")
        if self.sign is not None and not (
            3 <= len(self.sign) <= 7 and self.sign.isascii() and self.sign.isalpha() and self.sign.isupper()
        ):
            raise ValueError(f"sign must be 3 to 7 capital letters, got {self.sign!r}")


def draw(scene: Scene, pack: EmojiPack, scale: int = 1) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the picture of a scene: 128 by 128 pixels times ``scale``, red, green and blue.

    Emoji are stored at 128 px: those that come out larger, as one of 96 px does at scale 2, are enlarged and have no
    finer detail. All others, signs and edges are as sharp as the picture.
    """
    side = SCENE_SIZE_PX * scale
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    for item in scene.items:
        sprite = Image.fromarray(pack.sprite(item.concept_id, scene.style, item.size * scale))
        canvas.paste(sprite, (item.x * scale, item.y * scale), sprite)
    if scene.sign is not None:
        _draw_sign(canvas, scene.sign, 0 if scene.sign_on_top else side - SIGN_HEIGHT_PX * scale, scale)
    return np.array(canvas)


def _draw_sign(canvas: Image.Image, word: str, top: int, scale: int) -> None:
    edge_px, height, cell = 2 * scale, SIGN_HEIGHT_PX * scale, LATTICE_PX * scale
    canvas.paste("black", (0, top, canvas.width, top + height))
    canvas.paste("white", (0, top + edge_px, canvas.width, top + height - edge_px))
    left = (SCENE_SIZE_PX // LATTICE_PX - len(word)) // 2 * cell
    for index, letter in enumerate(word):
        canvas.paste("black", (left + index * cell, top), letter_shape(letter, scale))


@lru_cache(maxsize=2 * 26)
def letter_shape(letter: str, scale: int = 1) -> Image.Image:
    """Returns the opacity of one letter, centred in a cell of 16 by 32 pixels times ``scale``.

    Wide letters are narrowed to fit.
    """
    height, widest, enlarged = 20 * scale, 14 * scale, 8
    font = ImageFont.load_default(28 * enlarged)
    left, top, right, bottom = font.getbbox(letter, stroke_width=enlarged // 2)
    glyph = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(glyph).text((-left, -top), letter, fill=255, font=font, stroke_width=enlarged // 2)
    width = min(widest, round(glyph.width * height / glyph.height))
    cell = Image.new("L", (LATTICE_PX * scale, SIGN_HEIGHT_PX * scale))
    small = glyph.resize((width, height), Image.Resampling.LANCZOS)
    cell.paste(small, ((cell.width - width) // 2, (cell.height - height) // 2))
    return cell


@cache
def visible_backgrounds(pack: EmojiPack, concept_id: str, style: str) -> frozenset[str]:
    """Returns the grounds on which a concept stands out: most of it differs clearly from the colour."""
    sprite = pack.sprite(concept_id, style, 32).astype(np.int32)
    pixels = sprite[sprite[..., 3] > 128][:, :3]
    grounds = np.array(list(BACKGROUNDS.values()))
    distance = np.abs(pixels[:, None] - grounds).max(axis=-1)
    share = (distance > 80).mean(axis=0)
    return frozenset(name for name, value in zip(BACKGROUNDS, share, strict=True) if value > 0.5)
