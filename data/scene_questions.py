"""Questions about a scene, each with one short answer that the picture alone decides."""

import random
from dataclasses import dataclass

from rebus.data.captions import OPPOSITES, relation
from rebus.data.emoji import STYLE_PHRASES, Concept
from rebus.data.english import NUMBER_WORDS, Name
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import Scene
from rebus.data.splits import held_out_pair

QUESTION_KINDS = ("object", "count", "color", "position", "presence", "style", "text")
_LOOSE_GROUPS = ("smileys-emotion", "people-body", "symbols", "flags")
"""Groups in which one picture may go by the names of several concepts."""

_SIDES = {"to the left of": ("on the left", "on the right"), "above": ("at the top", "at the bottom")}
_SHOWN_RATE, _SWAPPED_RATE = 0.45, 0.4
"""How often it is asked of a place whether what is there is there, and whether what is at the other place is."""
_COUNT_ONE_RATE = 0.1
"""How often a scene with one object is counted: seldom, or ``one`` would be nearly always right."""


@dataclass(frozen=True)
class QuestionAnswer:
    """A question and its answer."""

    kind: str
    """One of ``QUESTION_KINDS``."""
    question: str
    answer: str


def questions(scene: Scene, rng: random.Random, sampler: SceneSampler) -> list[QuestionAnswer]:
    """Returns three to six questions that the scene can answer, each of another kind, in random order.

    Either it is asked whether a thing is shown, or what is shown and where: asked both, one could answer from the other
    question's words and never look at the picture.
    """
    names = [sampler.pack.concepts[item.concept_id].name for item in scene.items]
    asked = [
        _ask(rng, "color", scene.background, "What color is the background?", "Which color is the background?"),
        _ask(rng, "style", _style_word(scene.style), "What is the art style?", "In which style is it drawn?"),
        _presence(scene, rng, sampler) if rng.random() < 0.5 else _contents(scene, rng, names),
    ]
    if scene.task == "count" or (len(names) == 1 and names[0].countable and rng.random() < _COUNT_ONE_RATE):
        plural = names[0].plural
        asked.append(
            _ask(rng, "count", NUMBER_WORDS[len(names)], f"How many {plural} are there?", f"Count the {plural}.")
        )
    if scene.sign is not None:
        place = "top" if scene.sign_on_top else "bottom"
        asked.append(_ask(rng, "text", scene.sign, "What does the sign say?", "Which word is on the sign?"))
        asked.append(_ask(rng, "position", place, "Is the sign at the top or at the bottom?"))
    rng.shuffle(asked)
    return asked


def drill(scene: Scene, rng: random.Random, sampler: SceneSampler) -> list[QuestionAnswer]:
    """Returns many questions of which some give away what others ask: for a sample that asks each by itself.

    Besides those of ``questions`` they are what a model learns last: to find in the picture what a question names. Of
    two things it learns to say which one is above sooner if it is also asked whether either is at the top: it can tell
    whether a thing is there at all, and narrows that down.
    """
    asked = questions(scene, rng, sampler) + [_presence(scene, rng, sampler) for _ in range(2)]
    if len(scene.items) == 2 and scene.task != "count":
        names = [sampler.pack.concepts[item.concept_id].name for item in scene.items]
        one, other = rng.sample(range(2), 2)
        asked += [_what_is_there(scene, names, one, other)]
        asked += [_where_is_it(scene, names, one, other), _where_is_it(scene, names, other, one)]
        asked += [_is_it_there(scene, rng, sampler, one) for one in (0, 1, 0, 1)]
    return list({one.question: one for one in asked}.values())


def _ask(rng: random.Random, kind: str, answer: str, *wordings: str) -> QuestionAnswer:
    return QuestionAnswer(kind, rng.choice(wordings), answer)


def _style_word(style: str) -> str:
    return STYLE_PHRASES[style].removeprefix("in ").removesuffix(" style")


def _presence(scene: Scene, rng: random.Random, sampler: SceneSampler) -> QuestionAnswer:
    shown = _shown(scene, sampler)
    absent = _absent_concept(shown, rng, sampler) if rng.random() < 0.5 else None
    name = (absent or rng.choice(shown)).name.singular
    question = f"Is there {name} in the picture?"
    return _ask(rng, "presence", "no" if absent else "yes", question, f"Does the picture show {name}?")


def _shown(scene: Scene, sampler: SceneSampler) -> list[Concept]:
    return [sampler.pack.concepts[item.concept_id] for item in scene.items]


def _contents(scene: Scene, rng: random.Random, names: list[Name]) -> QuestionAnswer:
    if scene.task == "count":
        return _ask(rng, "object", names[0].plural, "What are these?", "What things are in the picture?")
    if len(names) == 2:
        return _position(scene, rng, names)
    return _ask(rng, "object", names[0].singular, f"What is in the picture{' besides the sign' if scene.sign else ''}?")


def _position(scene: Scene, rng: random.Random, names: list[Name]) -> QuestionAnswer:
    one, other = rng.sample(range(2), 2)
    return (_what_is_there if rng.random() < 0.5 else _where_is_it)(scene, names, one, other)


def _what_is_there(scene: Scene, names: list[Name], one: int, other: int) -> QuestionAnswer:
    found = relation(scene.items[one], scene.items[other])
    return QuestionAnswer("position", f"What is {found} {names[other].definite}?", names[one].singular)


def _where_is_it(scene: Scene, names: list[Name], one: int, other: int) -> QuestionAnswer:
    found = relation(scene.items[one], scene.items[other])
    first, second = next(pair for pair in OPPOSITES.items() if found in pair)
    question = f"Is {names[one].definite} {first} or {second} {names[other].definite}?"
    return QuestionAnswer("position", question, found.removeprefix("to the ").removesuffix(" of"))


def _is_it_there(scene: Scene, rng: random.Random, sampler: SceneSampler, place: int) -> QuestionAnswer:
    """Asks of the place of one of two items whether it is there, or the other one, or what is not shown at all."""
    found = relation(scene.items[place], scene.items[1 - place])
    sides = next(sides for first, sides in _SIDES.items() if found in (first, OPPOSITES[first]))
    side = sides[found not in _SIDES]
    shown, drawn = _shown(scene, sampler), rng.random()
    absent = _absent_concept(shown, rng, sampler) if drawn > _SHOWN_RATE + _SWAPPED_RATE else None
    asked = absent or (shown[place] if drawn < _SHOWN_RATE else shown[1 - place])
    answer = "yes" if asked is shown[place] else "no"
    return QuestionAnswer("position", f"Is there {asked.name.singular} {side}?", answer)


def _absent_concept(shown: list[Concept], rng: random.Random, sampler: SceneSampler) -> Concept | None:
    """Returns a concept that is clearly not shown, if one is soon found; in training none of a held-out pair."""
    for _ in range(20):
        concept = sampler.pack.concepts[rng.choice(sampler.concepts)]
        held_out = sampler.split == "train" and any(held_out_pair(concept.id, other.id) for other in shown)
        if not held_out and not any(_could_be_same(concept, other) for other in shown):
            return concept
    return None


def _could_be_same(one: Concept, other: Concept) -> bool:
    loose = one.group == other.group and one.group in _LOOSE_GROUPS
    return loose or bool(set(one.label.lower().split()) & set(other.label.lower().split()))
