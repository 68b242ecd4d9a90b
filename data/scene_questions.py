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


def _ask(rng: random.Random, kind: str, answer: str, *wordings: str) -> QuestionAnswer:
    return QuestionAnswer(kind, rng.choice(wordings), answer)


def _style_word(style: str) -> str:
    return STYLE_PHRASES[style].removeprefix("in ").removesuffix(" style")


def _presence(scene: Scene, rng: random.Random, sampler: SceneSampler) -> QuestionAnswer:
    shown = [sampler.pack.concepts[item.concept_id] for item in scene.items]
    absent = _absent_concept(shown, rng, sampler) if rng.random() < 0.5 else None
    name = (absent or rng.choice(shown)).name.singular
    question = f"Is there {name} in the picture?"
    return _ask(rng, "presence", "no" if absent else "yes", question, f"Does the picture show {name}?")


def _contents(scene: Scene, rng: random.Random, names: list[Name]) -> QuestionAnswer:
    if scene.task == "count":
        return _ask(rng, "object", names[0].plural, "What are these?", "What things are in the picture?")
    if len(names) == 2:
        return _position(scene, rng, names)
    return _ask(rng, "object", names[0].singular, f"What is in the picture{' besides the sign' if scene.sign else ''}?")


def _position(scene: Scene, rng: random.Random, names: list[Name]) -> QuestionAnswer:
    one, other = rng.sample(range(2), 2)
    found = relation(scene.items[one], scene.items[other])
    if rng.random() < 0.5:
        return QuestionAnswer("position", f"What is {found} {names[other].definite}?", names[one].singular)
    first, second = next(pair for pair in OPPOSITES.items() if found in pair)
    question = f"Is {names[one].definite} {first} or {second} {names[other].definite}?"
    return QuestionAnswer("position", question, found.removeprefix("to the ").removesuffix(" of"))


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
