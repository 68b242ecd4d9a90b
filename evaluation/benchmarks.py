"""The tasks of the report: prompts, questions and captions about scenes fixed by a seed, and how they are marked."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rebus.data.scene_questions import QUESTION_KINDS, QuestionAnswer, questions
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import TASKS, Scene, draw
from rebus.evaluation.caption_facts import CaptionReader, scene_facts
from rebus.evaluation.judges import Judge, Verdict

DRAWING_TASKS = {
    "one_object": "one",
    "two_objects": "two",
    "counting": "count",
    "position": "position",
    "background": "background",
    "sign_text": "sign",
}
"""Names of the drawing tasks in the report, and the tasks of the scenes that they ask for."""

_ARTICLE = re.compile(r"^(a|an|the) ")


@runtime_checkable
class Drawn(Protocol):
    """A drawing of a model."""

    @property
    def image(self) -> Image.Image:
        """The picture."""
        ...


@runtime_checkable
class UnifiedModel(Protocol):
    """What is evaluated: draws, answers and describes, as a ``Rebus`` does."""

    def draw(self, prompts: Sequence[str], *, seed: Sequence[int]) -> Sequence[Drawn]:
        """Returns one drawing for each prompt."""
        ...

    def rebuild(self, images: Sequence[Image.Image]) -> Sequence[Drawn]:
        """Returns each picture as its codes keep it: encoded and painted again."""
        ...

    def answers(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Returns one answer for each picture and its question."""
        ...

    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """Returns one description for each picture."""
        ...


@dataclass(frozen=True, eq=False)
class JudgedDrawing:
    """A picture drawn for a prompt, and what the judge says of it and of the true picture."""

    prompt: str
    picture: UInt8[np.ndarray, "height width 3"]
    verdict: Verdict
    true_verdict: Verdict
    """Of the composed scene that the prompt tells of: where it fails, the judge is at fault."""
    rebuilt_verdict: Verdict
    """Of that scene encoded and painted again: where it fails, image tokenizer and decoder cannot show the scene."""


@dataclass(frozen=True)
class Answer:
    """What was said to a question, and what is right."""

    kind: str
    question: str
    given: str
    right: str

    @property
    def passed(self) -> bool:
        """Whether both are the same but for case, article and punctuation."""
        return normalized(self.given) == normalized(self.right)


@dataclass(frozen=True)
class Caption:
    """What was said of a picture, and the share of the scene's facts in it."""

    text: str
    share: float


def drawings(
    model: UnifiedModel, judge: Judge, samples: SceneSamples, task: str, number: int, batch_size: int
) -> list[JudgedDrawing]:
    """Returns what the model draws for a number of prompts of one task of the scenes, judged."""
    asked = [samples.prompt(random.Random(f"draw/{task}/{index}"), task) for index in range(number)]
    result = []
    for start in range(0, number, batch_size):
        scenes, prompts = (list(one) for one in zip(*asked[start : start + batch_size], strict=True))
        pictures = _pixels(model.draw(prompts, seed=range(start, start + len(prompts))))
        truth = _pictures(scenes, samples)
        rebuilt = _pixels(model.rebuild(truth))
        verdicts = [judge.verdicts(scenes, each) for each in (pictures, np.stack([*map(np.asarray, truth)]), rebuilt)]
        result += [JudgedDrawing(*each) for each in zip(prompts, pictures, *verdicts, strict=True)]
    return result


def answers(
    answer: Callable[[Sequence[Image.Image], Sequence[str]], list[str]],
    samples: SceneSamples,
    number: int,
    batch_size: int,
) -> list[Answer]:
    """Returns a model's answers to questions about as many scenes, the kinds in turn."""
    asked = [_question(samples, random.Random(f"ask/{index}"), _turn(QUESTION_KINDS, index)) for index in range(number)]
    result = []
    for start in range(0, number, batch_size):
        part = asked[start : start + batch_size]
        given = answer(_pictures([scene for scene, _ in part], samples), [one.question for _, one in part])
        result += [Answer(one.kind, one.question, text, one.answer) for (_, one), text in zip(part, given, strict=True)]
    return result


def captions(model: UnifiedModel, samples: SceneSamples, number: int, batch_size: int) -> list[Caption]:
    """Returns the model's captions of as many scenes, the tasks in turn."""
    reader = CaptionReader(samples.pack, samples.sampler.concepts)
    scenes = [samples.sampler.scene(random.Random(f"tell/{index}"), _turn(TASKS, index)) for index in range(number)]
    result = []
    for start in range(0, number, batch_size):
        part = scenes[start : start + batch_size]
        for scene, text in zip(part, model.captions(_pictures(part, samples)), strict=True):
            facts = scene_facts(scene)
            result.append(Caption(text, len(facts & reader.facts(text)) / len(facts)))
    return result


def normalized(answer: str) -> str:
    """Returns an answer without capitals, outer punctuation and article."""
    return _ARTICLE.sub("", answer.strip(" .!?\"'\n").lower())


def _question(samples: SceneSamples, rng: random.Random, kind: str) -> tuple[Scene, QuestionAnswer]:
    """Returns the first question of a kind about a scene that allows one."""
    while True:
        scene = samples.sampler.scene(rng)
        for one in questions(scene, rng, samples.sampler):
            if one.kind == kind:
                return scene, one


def _pixels(drawn: Sequence[Drawn]) -> UInt8[np.ndarray, "batch height width 3"]:
    return np.stack([np.asarray(one.image) for one in drawn])


def _pictures(scenes: Sequence[Scene], samples: SceneSamples) -> list[Image.Image]:
    return [Image.fromarray(draw(scene, samples.pack)) for scene in scenes]


def _turn(choices: Sequence[str], index: int) -> str:
    return choices[index % len(choices)]
