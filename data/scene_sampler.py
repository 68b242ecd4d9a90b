"""Draws scenes at random, either such as training may show or such as it never shows."""

import random
from collections.abc import Sequence
from typing import Literal

from rebus.data.emoji import STYLES, EmojiPack
from rebus.data.scenes import LATTICE_PX, SCENE_SIZE_PX, SIGN_HEIGHT_PX, TASKS, Item, Scene, visible_backgrounds
from rebus.data.sign_words import sign_words
from rebus.data.splits import COUNTS, held_out_facts, held_out_word

Split = Literal["train", "held_out"]

_MAX_TRIES = 2_000
HELD_OUT_FACT = {
    "one": "cell",
    "background": "cell",
    "two": "pair",
    "position": "pair",
    "count": "count",
    "sign": "word",
}
"""The kind of held-out thing that a held-out scene of each task shows; all else in the scene is as in training."""

ONE_OBJECT_TASKS = ("one", "background", "sign")


class SceneSampler:
    """Scenes of one split over a set of concepts.

    A ``train`` scene shows nothing that is held out. A ``held_out`` scene shows exactly the kind of held-out thing that
    belongs to its task (see ``HELD_OUT_FACT``), so that a score on it says what failed.
    """

    def __init__(self, pack: EmojiPack, concepts: Sequence[str], split: Split):
        if len(concepts) < 2:
            raise ValueError(f"concepts must be at least 2, got {len(concepts)}")
        self.pack = pack
        self.concepts = tuple(concepts)
        self.split = split
        self.countable: tuple[str, ...] = tuple(item for item in concepts if pack.concepts[item].name.countable)
        if not self.countable:
            raise ValueError("concepts must hold one that can be counted, got none")
        words = sign_words(pack)
        self.words: tuple[str, ...] = tuple(word for word in words if held_out_word(word) == (split == "held_out"))

    def scene(self, rng: random.Random, task: str | None = None, concept: str | None = None) -> Scene:
        """Returns a scene of ``task``, by default of any.

        Args:
            rng: draws everything that is not given.
            task: one of ``TASKS``.
            concept: what it shows, for tasks of scenes with one object.

        Raises:
            ValueError: if ``task`` is none of ``TASKS``, a concept is given for one of several objects, or the concepts
                are too few for any such scene to exist.
        """
        task = rng.choice(TASKS) if task is None else task
        if task not in TASKS:
            raise ValueError(f"task must be one of {TASKS}, got {task!r}")
        if concept is not None and task not in ONE_OBJECT_TASKS:
            raise ValueError(f"task must be one of {ONE_OBJECT_TASKS} to show a given concept, got {task!r}")
        for _ in range(_MAX_TRIES):
            items, word, sign_on_top = self._contents(rng, task, concept)
            style = rng.choice(STYLES)
            grounds = self.backgrounds({item.concept_id for item in items}, style)
            if grounds:
                scene = Scene(items, style, rng.choice(grounds), word, task, sign_on_top)
                if self.is_in_split(scene):
                    return scene
        raise ValueError(
            f"concepts must allow a {self.split} scene of task {task!r}, got {len(self.concepts)} concepts"
        )

    def is_in_split(self, scene: Scene) -> bool:
        """Whether this sampler may yield the scene."""
        wanted = {HELD_OUT_FACT[scene.task]} if self.split == "held_out" else set()
        return held_out_facts(scene) == wanted

    def backgrounds(self, concepts: set[str], style: str) -> tuple[str, ...]:
        """Returns the grounds on which all these concepts stand out, in alphabetical order."""
        visible = [visible_backgrounds(self.pack, concept, style) for concept in concepts]
        return tuple(sorted(frozenset.intersection(*visible)))

    def _contents(
        self, rng: random.Random, task: str, concept: str | None
    ) -> tuple[tuple[Item, ...], str | None, bool]:
        if task in ("two", "position"):
            return two_items(rng, *rng.sample(self.concepts, 2)), None, False
        if task == "count":
            return counted_items(rng, rng.choice(self.countable), rng.choice(COUNTS)), None, False
        concept = rng.choice(self.concepts) if concept is None else concept
        if task == "sign":
            sign_on_top = rng.random() < 0.5
            return (item_beside_sign(rng, concept, sign_on_top),), rng.choice(self.words), sign_on_top
        size = rng.choice((64, 96))
        return (Item(concept, _place(rng, size), _place(rng, size), size),), None, False


def two_items(rng: random.Random, concept_a: str, concept_b: str) -> tuple[Item, Item]:
    """Returns two items side by side or one above the other, never far out of line."""
    half = SCENE_SIZE_PX // 2
    across = rng.randrange(0, half + 1, LATTICE_PX)
    across_b = rng.choice([place for place in range(0, half + 1, LATTICE_PX) if abs(place - across) <= LATTICE_PX])
    if rng.random() < 0.5:
        items = Item(concept_a, 0, across, half), Item(concept_b, half, across_b, half)
    else:
        items = Item(concept_a, across, 0, half), Item(concept_b, across_b, half, half)
    return items


def counted_items(rng: random.Random, concept: str, count: int) -> tuple[Item, ...]:
    """Returns up to 4 items of 64 px, or more of 32 px, each in a cell of its own size."""
    size = 64 if count <= 4 else 32
    cells_in_row = SCENE_SIZE_PX // size
    cells = sorted(rng.sample(range(cells_in_row**2), count))
    return tuple(Item(concept, cell % cells_in_row * size, cell // cells_in_row * size, size) for cell in cells)


def item_beside_sign(rng: random.Random, concept: str, sign_on_top: bool) -> Item:
    """Returns an item that leaves room for the board of a sign at the top or at the bottom."""
    size = 64
    first = SIGN_HEIGHT_PX if sign_on_top else 0
    last = SCENE_SIZE_PX - size - (0 if sign_on_top else SIGN_HEIGHT_PX)
    return Item(concept, _place(rng, size), rng.randrange(first, last + 1, LATTICE_PX), size)


def _place(rng: random.Random, size: int) -> int:
    return rng.randrange(0, SCENE_SIZE_PX - size + 1, LATTICE_PX)
