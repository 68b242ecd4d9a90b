"""Changes to a scene, told as an instruction and as a sentence of a story; and stories made of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from rebus.data.captions import canonical_caption
from rebus.data.emoji import STYLE_PHRASES, STYLES
from rebus.data.english import Name
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import SCENE_SIZE_PX, Item, Scene
from rebus.data.splits import held_out_pair, is_held_out

EDIT_TASKS = {
    "background": ("one", "two", "count", "position", "background", "sign"),
    "style": ("one", "two", "count", "position", "background", "sign"),
    "replace": ("one", "two", "count", "position", "background", "sign"),
    "add": ("one", "background"),
    "remove": ("two", "position"),
    "word": ("sign",),
}
"""Kinds of edits, and the tasks whose scenes they apply to."""
_NUM_TRIES = 5


@dataclass(frozen=True)
class Edit:
    """One change to a scene."""

    kind: str
    """One of ``EDIT_TASKS``."""
    instruction: str
    """What a user asks for: ``make the background pink``."""
    narration: str
    """What a story tells: ``Then the background turns pink.``"""
    scene: Scene
    """The scene after the change."""


def edit(scene: Scene, rng: random.Random, sampler: SceneSampler, kind: str | None = None) -> Edit | None:
    """Returns a change of this kind (by default of any that applies), or None if none was found in a few tries.

    With a ``train`` sampler the changed scene shows nothing that is held out; with a ``held_out`` one it may.

    Raises:
        ValueError: if ``kind`` is none of ``EDIT_TASKS``.
    """
    if kind is not None and kind not in EDIT_TASKS:
        raise ValueError(f"kind must be one of {tuple(EDIT_TASKS)}, got {kind!r}")
    kinds = [name for name, tasks in EDIT_TASKS.items() if scene.task in tasks and kind in (None, name)]
    for _ in range(_NUM_TRIES * bool(kinds)):
        found = _MAKERS[rng.choice(kinds)](scene, rng, sampler)
        if found is not None and _is_legal(found.scene, sampler):
            return found
    return None


def story(rng: random.Random, sampler: SceneSampler) -> list[tuple[str, Scene]]:
    """Returns two or three sentences, each with the scene that it leads to; together they state all facts."""
    num_scenes = rng.choice((2, 3))
    scene = sampler.scene(rng)
    told = [(f"{_there_is(scene, sampler)}.", scene)]
    kinds = rng.sample([kind for kind in EDIT_TASKS if kind != "style"], len(EDIT_TASKS) - 1)
    for kind in kinds:
        change = edit(told[-1][1], rng, sampler, kind)
        if change is not None:
            told.append((change.narration, change.scene))
        if len(told) == num_scenes:
            return told
    return story(rng, sampler)


def _is_legal(scene: Scene, sampler: SceneSampler) -> bool:
    concepts = {item.concept_id for item in scene.items}
    visible = scene.background in sampler.backgrounds(concepts, scene.style)
    return visible and not (sampler.split == "train" and is_held_out(scene))


def _there_is(scene: Scene, sampler: SceneSampler) -> str:
    opening = "There are" if scene.task == "count" else "There is"
    return f"{opening} {canonical_caption(scene, sampler.pack)}"


def _name(item: Item, sampler: SceneSampler) -> Name:
    return sampler.pack.concepts[item.concept_id].name


def _change_background(scene: Scene, rng: random.Random, sampler: SceneSampler) -> Edit | None:
    others = set(sampler.backgrounds({item.concept_id for item in scene.items}, scene.style)) - {scene.background}
    if not others:
        return None
    color = rng.choice(sorted(others))
    instruction = rng.choice((f"make the background {color}", f"change the background to {color}"))
    changed = replace(scene, background=color, task="background" if scene.task == "one" else scene.task)
    return Edit("background", instruction, f"Then the background turns {color}.", changed)


def _change_style(scene: Scene, rng: random.Random, sampler: SceneSampler) -> Edit:
    style = rng.choice([style for style in STYLES if style != scene.style])
    phrase = STYLE_PHRASES[style]
    instruction = rng.choice((f"redraw it {phrase}", f"change it to {phrase.removeprefix('in ')}"))
    return Edit("style", instruction, f"Then everything is {phrase}.", replace(scene, style=style))


def _replace_item(scene: Scene, rng: random.Random, sampler: SceneSampler) -> Edit | None:
    old = rng.choice(scene.items).concept_id
    new = rng.choice(sampler.countable if scene.task == "count" else sampler.concepts)
    if new in {item.concept_id for item in scene.items}:
        return None
    if sampler.split == "train" and held_out_pair(old, new):
        return None  # no picture would show both, but the instruction would name them together
    items = tuple(replace(item, concept_id=new) if item.concept_id == old else item for item in scene.items)
    before, after = sampler.pack.concepts[old].name, sampler.pack.concepts[new].name
    if scene.task == "count":
        what, verb, result = f"the {before.plural}", "turn", after.plural
    else:
        what, verb, result = before.definite, "turns", after.singular
    instruction = rng.choice((f"replace {what} with {result}", f"turn {what} into {result}"))
    return Edit("replace", instruction, f"Then {what} {verb} into {result}.", replace(scene, items=items))


def _add_item(scene: Scene, rng: random.Random, sampler: SceneSampler) -> Edit | None:
    (old,) = scene.items
    half = SCENE_SIZE_PX // 2
    if old.size != half:
        return None
    places = {
        "on the left": (old.x >= half, 0, old.y),
        "on the right": (old.x == 0, half, old.y),
        "above": (old.y >= half, old.x, 0),
        "below": (old.y == 0, old.x, half),
    }
    free = [(side, x, y) for side, (is_free, x, y) in places.items() if is_free]
    concept = rng.choice(sampler.concepts)
    if not free or concept == old.concept_id:
        return None
    side, x, y = rng.choice(free)
    new = Item(concept, x, y, half)
    name = _name(new, sampler)
    where = f"{side} {_name(old, sampler).definite}" if side in ("above", "below") else side
    items = (new, old) if side in ("on the left", "above") else (old, new)
    instruction = rng.choice((f"add {name.singular} {where}", f"put {name.singular} {where}"))
    changed = replace(scene, items=items, task="two")
    return Edit("add", instruction, f"Then {name.singular} appears {where}.", changed)


def _remove_item(scene: Scene, rng: random.Random, sampler: SceneSampler) -> Edit:
    gone = rng.choice(scene.items)
    kept = tuple(item for item in scene.items if item is not gone)
    what = _name(gone, sampler).definite
    instruction = rng.choice((f"remove {what}", f"take {what} away"))
    return Edit("remove", instruction, f"Then {what} goes away.", replace(scene, items=kept, task="one"))


def _change_word(scene: Scene, rng: random.Random, sampler: SceneSampler) -> Edit | None:
    word = rng.choice(sampler.words)
    if word == scene.sign:
        return None
    instruction = rng.choice((f'change the sign to "{word}"', f'make the sign say "{word}"'))
    return Edit("word", instruction, f'Then the sign says "{word}".', replace(scene, sign=word))


_MAKERS: dict[str, Callable[[Scene, random.Random, SceneSampler], Edit | None]] = {
    "background": _change_background,
    "style": _change_style,
    "replace": _replace_item,
    "add": _add_item,
    "remove": _remove_item,
    "word": _change_word,
}
