"""Says in English what a scene shows. Captions begin in lower case, as prompts do."""

import random
from dataclasses import replace

from rebus.data.emoji import STYLE_PHRASES, EmojiPack
from rebus.data.english import Name, with_article
from rebus.data.scenes import SCENE_SIZE_PX, Item, Scene

OPPOSITES = {"to the left of": "to the right of", "above": "below"}
"""How the first of two items stands to the second, and the second to the first."""
STYLE_RATE, BACKGROUND_RATE = 0.5, 0.7
"""How often a text names the art style and the background: an object is to be known by its name in any style."""


def caption(
    scene: Scene,
    rng: random.Random,
    pack: EmojiPack,
    *,
    style_rate: float = STYLE_RATE,
    background_rate: float = BACKGROUND_RATE,
) -> str:
    """Returns a caption that states all facts of the scene's task, in one of many wordings.

    Style and background are mentioned at the given rates; the background always where it is the scene's task.
    """
    has_style = rng.random() < style_rate
    has_background = scene.task == "background" or rng.random() < background_rate
    if rng.random() < 0.5:
        return plain_caption(scene, pack, has_style=has_style, has_background=has_background)
    contents = rng.choice(_contents(scene, pack))
    style = STYLE_PHRASES[scene.style]
    ground = with_article(f"{scene.background} background")
    if has_background:
        contents = rng.choice((f"{contents} on {ground}", f"{contents} against {ground}", f"{contents} with {ground}"))
    if has_style:
        opening = "" if contents.startswith(("a picture", "there")) else "a picture of "
        contents = rng.choice((f"{contents}, {style}", f"{contents}, drawn {style}", f"{style}, {opening}{contents}"))
    return contents


def plain_caption(scene: Scene, pack: EmojiPack, *, has_style: bool, has_background: bool) -> str:
    """Returns the plainest caption with or without style and background; both can be left out for all tasks but one."""
    ground = with_article(f"{scene.background} background")
    text = _contents(scene, pack)[0]
    if has_background or scene.task == "background":
        text = f"{text} on {ground}"
    return f"{text}, {STYLE_PHRASES[scene.style]}" if has_style else text


def canonical_caption(scene: Scene, pack: EmojiPack) -> str:
    """Returns the one plain caption with all facts: ``a cat on a pink background, in flat style``."""
    return plain_caption(scene, pack, has_style=True, has_background=True)


def description(scene: Scene, pack: EmojiPack) -> str:
    """Returns the canonical caption that the picture alone calls for: where two things stand is always said."""
    return canonical_caption(replace(scene, task="position") if scene.task == "two" else scene, pack)


def descriptions(scene: Scene, pack: EmojiPack) -> list[str]:
    """Returns the descriptions of all pictures that show what the canonical caption says.

    It leaves open where two things stand, unless that is the task; two of a kind may then be told of as two things.
    """
    told = [description(scene, pack)]
    if len(scene.items) == 2 and scene.task != "position":
        half, (one, other) = SCENE_SIZE_PX // 2, scene.items
        for first, second in ((one, other), (other, one)):
            for x, y in ((half, 0), (0, half)):
                items = replace(first, x=0, y=0, size=half), replace(second, x=x, y=y, size=half)
                told.append(description(replace(scene, items=items, task="two"), pack))
    return list(dict.fromkeys(told))


def relation(first: Item, second: Item) -> str:
    """Returns how the first item stands to the second: a key or a value of ``OPPOSITES``."""
    if abs(first.x - second.x) >= abs(first.y - second.y):
        return "to the left of" if first.x < second.x else "to the right of"
    return "above" if first.y < second.y else "below"


def _contents(scene: Scene, pack: EmojiPack) -> list[str]:
    """Returns wordings of what stands on the ground, the canonical one first."""
    names = [pack.concepts[item.concept_id].name for item in scene.items]
    if scene.task == "sign":
        return _sign_contents(names[0].singular, scene.sign)
    if scene.task == "count":
        plural = names[0].counted(len(names))
        return [plural, f"a picture of {plural}", f"there are {plural}", f"a group of {plural}"]
    if len(names) == 1:
        one = names[0].singular
        return [one, f"a picture of {one}", f"there is {one}", f"just {one}"]
    first, second = names
    if scene.task == "position":
        return _position_contents(first, second, relation(*scene.items))
    together = f"{first.singular} and {second.singular}"
    return [
        together,
        f"{second.singular} and {first.singular}",
        f"a picture of {together}",
        f"{second.singular} together with {first.singular}",
    ]


def _position_contents(first: Name, second: Name, relation: str) -> list[str]:
    opposite = OPPOSITES[relation]
    return [
        f"{first.singular} {relation} {second.singular}",
        f"{second.singular} {opposite} {first.singular}",
        f"a picture of {second.singular} {opposite} {first.singular}",
        f"there is {first.singular} {relation} {second.singular}",
    ]


def _sign_contents(thing: str, word: str | None) -> list[str]:
    return [
        f'{thing} and a sign that says "{word}"',
        f'a sign that says "{word}" and {thing}',
        f'{thing} with a sign that reads "{word}"',
        f'a picture of {thing} and the word "{word}" on a sign',
    ]
