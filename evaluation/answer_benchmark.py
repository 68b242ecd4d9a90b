"""What a model answers to questions about held-out scenes (VQA)."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from rebus.data.scene_questions import QUESTION_KINDS, QuestionAnswer, questions
from rebus.data.scene_sampler import HELD_OUT_FACT
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import Scene, draw
from rebus.evaluation.benchmark import Marks, Outcome, Workbench, attempted

_ARTICLE = re.compile(r"^(a|an|the) ")
Asked = tuple[Scene, QuestionAnswer]


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


@dataclass(frozen=True, kw_only=True)
class AnswerBenchmark:
    """Questions about as many scenes, the kinds in turn."""

    number: int = 210
    """Questions."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "vqa"

    @property
    def is_judged(self) -> bool:
        """Answers are compared with the right ones."""
        return False

    def check(self) -> None:
        """Needs nothing."""

    def run(self, bench: Workbench) -> Outcome:
        """Asks all questions; the score of all stands before those by kind, and by what of the scene is held out."""
        bench.say("answering")
        asked = held_out_questions(bench.samples, self.number)
        names = {f"{row}": one for row, one in enumerate(asked)}
        given, failed = attempted(
            lambda part: _answered(bench.model.answers, bench.samples, part), names, bench.batch_size
        )
        whole = Marks(each={item: float(one.passed) for item, one in given.items()}, failed=failed)
        groups: dict[str, list[str]] = {f"vqa_by_kind/{kind}": [] for kind in QUESTION_KINDS}
        groups |= {f"vqa_by_held_out/{fact}": [] for fact in sorted({*HELD_OUT_FACT.values()})}
        for item, (scene, one) in names.items():
            groups[f"vqa_by_kind/{one.kind}"].append(item)
            groups[f"vqa_by_held_out/{HELD_OUT_FACT[scene.task]}"].append(item)
        marks = {name: _part(whole, items) for name, items in groups.items() if items}
        return Outcome(marks={"vqa": whole, **marks})


def _part(whole: Marks, items: Sequence[str]) -> Marks:
    return Marks(
        each={item: whole.each[item] for item in items if item in whole.each},
        failed={item: whole.failed[item] for item in items if item in whole.failed},
    )


def held_out_questions(samples: SceneSamples, number: int) -> list[Asked]:
    """Returns the questions, which are the same every time, with the scenes that they are about."""
    kinds = (QUESTION_KINDS[index % len(QUESTION_KINDS)] for index in range(number))
    return [_question(samples, random.Random(f"ask/{index}"), kind) for index, kind in enumerate(kinds)]


def answers(
    answer: Callable[[Sequence[Image.Image], Sequence[str]], list[str]],
    samples: SceneSamples,
    number: int,
    batch_size: int,
) -> list[Answer]:
    """Returns what a function answers to the questions; an error of it is one of the caller's."""
    asked = held_out_questions(samples, number)
    parts = (asked[start : start + batch_size] for start in range(0, number, batch_size))
    return [one for part in parts for one in _answered(answer, samples, part)]


def normalized(answer: str) -> str:
    """Returns an answer without capitals, outer punctuation and article."""
    return _ARTICLE.sub("", answer.strip(" .!?\"'\n").lower())


def _answered(
    answer: Callable[[Sequence[Image.Image], Sequence[str]], list[str]], samples: SceneSamples, asked: Sequence[Asked]
) -> list[Answer]:
    pictures = [Image.fromarray(draw(scene, samples.pack)) for scene, _ in asked]
    given = answer(pictures, [one.question for _, one in asked])
    return [Answer(one.kind, one.question, text, one.answer) for (_, one), text in zip(asked, given, strict=True)]


def _question(samples: SceneSamples, rng: random.Random, kind: str) -> Asked:
    """Returns the first question of a kind about a scene that allows one."""
    while True:
        scene = samples.sampler.scene(rng)
        for one in questions(scene, rng, samples.sampler):
            if one.kind == kind:
                return scene, one
