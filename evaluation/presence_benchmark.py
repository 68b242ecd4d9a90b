"""Whether a model says that things are in a picture which are not there: yes-or-no questions, as POPE asks them.

Half of the questions have the answer yes, so a model that always says yes is right in half of them, and its share of
yes shows why. What is not there is chosen in three ways, the later ones more tempting:

``random``: anything.
``popular``: one of the things that training shows most often (``POPULAR``).
``adversarial``: something of the same kind as a thing that is there, such as a dog where there is a cat.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (POPE),
https://arxiv.org/abs/2305.10355, sec. 5.
Differs: pictures are composed scenes, of which one thing that is there is asked, not three of at least that many.
Popular things are drawn from the most frequent of training, where POPE takes the most frequent of its own pictures in
order. Adversarial ones are of the same kind, where POPE takes what most often stands beside a thing: in scenes any two
things stand together equally often. An answer that is neither yes nor no is wrong; POPE counts it as yes.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import TASKS, Scene, draw
from rebus.evaluation.answer_benchmark import normalized
from rebus.evaluation.benchmark import Marks, Outcome, Workbench, attempted

NEGATIVES = ("random", "popular", "adversarial")
POPULAR = 8
"""How many of the most frequent things are called popular."""
_SCENES_COUNTED = 600
"""Scenes of training in which it is counted how often each thing is shown."""
_MAX_TRIES = 1000


@dataclass(frozen=True)
class Probe:
    """A question whether a thing is in a scene."""

    item: str
    """Number of the scene and what is asked of it: ``7/yes``, or ``7/popular`` for what is not there."""
    negatives: tuple[str, ...]
    """The sets that it belongs to: all of ``NEGATIVES`` if the answer is yes, else one."""
    scene: Scene
    question: str
    right: str
    """``yes`` or ``no``."""


@dataclass(frozen=True, kw_only=True)
class PresenceBenchmark:
    """Questions about a number of scenes, the tasks in turn; a mark is whether the answer is right."""

    number: int = 60
    """Scenes; four questions are asked about each."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "pope"

    @property
    def is_judged(self) -> bool:
        """Answers are compared with the right ones."""
        return False

    def check(self) -> None:
        """Needs nothing."""

    def run(self, bench: Workbench) -> Outcome:
        """Asks all questions; those to be answered yes are in all three sets."""
        bench.say("asking what is there")
        asked = probes(bench.samples.sampler, self.number)

        def answered(part: Sequence[Probe]) -> list[str]:
            pictures = [Image.fromarray(draw(one.scene, bench.samples.pack)) for one in part]
            return [normalized(text) for text in bench.model.answers(pictures, [one.question for one in part])]

        given, failed = attempted(answered, {one.item: one for one in asked}, bench.batch_size)
        marks = {}
        for name in NEGATIVES:
            items = [one for one in asked if name in one.negatives]
            marks[f"pope/{name}"] = Marks(
                each={one.item: float(given[one.item] == one.right) for one in items if one.item in given},
                failed={one.item: failed[one.item] for one in items if one.item in failed},
            )
        return Outcome(marks=marks, others=presence_figures(asked, given))


def probes(sampler: SceneSampler, number: int) -> list[Probe]:
    """Returns the questions about a number of scenes, one to be answered yes and three no for each, always the same.

    Scenes of things that nothing is like are passed over.

    Raises:
        ValueError: if hardly any thing of the sampler is like another.
    """
    popular = _popular(sampler)
    asked = []
    for index in range(number):
        rng = random.Random(f"presence/{index}")
        scene, thing, alike = _scene_with_like(sampler, rng, TASKS[index % len(TASKS)])
        shown = {item.concept_id for item in scene.items}
        chosen = {
            "random": rng.choice([one for one in sampler.concepts if one not in shown]),
            "popular": rng.choice([one for one in popular if one not in shown]),
            "adversarial": rng.choice(alike),
        }
        asked.append(Probe(f"{index}/yes", NEGATIVES, scene, _question(sampler.pack, thing), "yes"))
        for negatives, absent in chosen.items():
            asked.append(Probe(f"{index}/{negatives}", (negatives,), scene, _question(sampler.pack, absent), "no"))
    return asked


def presence_figures(asked: Sequence[Probe], given: Mapping[str, str]) -> dict[str, float]:
    """Returns what is no mean of marks, by kind of figure and set of questions, as ``pope_f1/random``.

    These are precision, recall, F1, and the shares of yes and of neither yes nor no; precision is 0 if there is no yes.

    Args:
        asked: questions.
        given: normalized answers by ``Probe.item``; figures are of these questions alone.
    """
    figures = {}
    for name in NEGATIVES:
        pairs = [(one.right, given[one.item]) for one in asked if name in one.negatives and one.item in given]
        if pairs:
            counts = Counter((right, answer if answer in ("yes", "no") else "neither") for right, answer in pairs)
            figures |= {f"pope_{kind}/{name}": value for kind, value in _figures(counts).items()}
    return figures


def _figures(counts: Mapping[tuple[str, str], int]) -> dict[str, float]:
    total, hits = sum(counts.values()), counts.get(("yes", "yes"), 0)
    said_yes = hits + counts.get(("no", "yes"), 0)
    there = sum(number for (right, _), number in counts.items() if right == "yes")
    neither = sum(number for (_, answer), number in counts.items() if answer == "neither")
    return {
        "precision": hits / said_yes if said_yes else 0.0,
        "recall": hits / there if there else 0.0,
        "f1": 2 * hits / (said_yes + there) if said_yes + there else 0.0,
        "yes_share": said_yes / total,
        "neither_share": neither / total,
    }


def _question(pack: EmojiPack, concept: str) -> str:
    """Returns the question in the words that models are taught with scenes."""
    return f"Is there {pack.concepts[concept].name.singular} in the picture?"


def _scene_with_like(sampler: SceneSampler, rng: random.Random, task: str) -> tuple[Scene, str, list[str]]:
    """Returns a scene, a thing in it, and what is like that thing and not there."""
    for _ in range(_MAX_TRIES):
        scene = sampler.scene(rng, task)
        shown = {item.concept_id for item in scene.items}
        thing = rng.choice(sorted(shown))
        if alike := [one for one in _alike(sampler, thing) if one not in shown]:
            return scene, thing, alike
    raise ValueError(f"concepts must hold several of one kind, got {len(sampler.concepts)} that are not alike")


def _alike(sampler: SceneSampler, concept: str) -> list[str]:
    """Returns things of the same subgroup of emoji; if there are none, of the same group."""
    own = sampler.pack.concepts[concept]
    others = [sampler.pack.concepts[one] for one in sampler.concepts if one != concept]
    near = [one.id for one in others if one.subgroup == own.subgroup]
    return near or [one.id for one in others if one.group == own.group]


def _popular(sampler: SceneSampler) -> list[str]:
    """Returns what scenes of training show most often, in as many scenes of each task."""
    training = SceneSampler(sampler.pack, sampler.concepts, "train")
    shown: Counter[str] = Counter()
    for index in range(_SCENES_COUNTED):
        scene = training.scene(random.Random(f"popular/{index}"), TASKS[index % len(TASKS)])
        shown.update({item.concept_id for item in scene.items})
    return [concept for concept, _ in shown.most_common(POPULAR)]
