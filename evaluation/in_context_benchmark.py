"""What a model learns within one prompt: how well it does after 0, 1, 2, 4 and 8 examples of a task nobody taught it.

``naming``: two things are called by made-up words; the model says what a new picture of one of them shows.
``choice``: whether it finds the right one of the two words likelier; guessing is right in half of all cases.
``captions``: each picture is described without the style and background that the model was taught to tell of; ``facts``
is the share of what is there that the model tells of the last one, in whatever form: what examples cost.

An example is a picture in a message of the user and the answer of the assistant; the last picture has none yet.

Source: Tsimpoukelli et al., "Multimodal Few-Shot Learning with Frozen Language Models",
https://arxiv.org/abs/2106.13884, sec. 4.2 (fast concept binding).
Differs: pictures are composed scenes, and names are said freely or chosen by likelihood; both are reported.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from rebus.data.captions import plain_caption
from rebus.data.emoji import EmojiPack
from rebus.data.english import with_article
from rebus.data.samples import Message, Picture
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import DESCRIBE_REQUEST
from rebus.data.scenes import Scene, draw
from rebus.evaluation.answer_benchmark import normalized
from rebus.evaluation.benchmark import Marks, Outcome, Workbench, attempted
from rebus.evaluation.caption_facts import CaptionReader

NUMBERS = (0, 1, 2, 4, 8)
"""Examples before the question."""
WORDS = ("dax", "blicket", "wug", "toma", "fep", "zorp", "gazzer", "modi")
"""Names of nothing."""
NAMING_QUESTION = "What is in the picture?"
_CAPTION_TASKS = ("one", "count", "two", "position")
"""Scenes whose plainest caption tells of neither style nor background."""
_MAX_TRIES = 1000


@runtime_checkable
class Talker(Protocol):
    """What is examined, such as a ``Rebus``."""

    def look(self, image: Image.Image) -> Picture:
        """Returns a picture as a message may hold it."""
        ...

    def replies(self, chats: Sequence[Sequence[Message]]) -> list[str]:
        """Returns what the assistant says next in each chat."""
        ...

    def log_likelihoods(self, chats: Sequence[Sequence[Message]], texts: Sequence[str]) -> Sequence[Any]:
        """Returns the log-probabilities of the ids of what the assistant might say next in each chat."""
        ...


@dataclass(frozen=True, kw_only=True)
class InContextBenchmark:
    """Lessons of two tasks, each after 0, 1, 2, 4 and 8 examples; a mark is whether the model was right.

    Lessons too long for the model to read are failed ones.
    """

    number: int = 40
    """Lessons of each task, the same after any number of examples."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "in_context"

    @property
    def is_judged(self) -> bool:
        """Answers are compared with the right ones."""
        return False

    def check(self) -> None:
        """Needs nothing."""

    def run(self, bench: Workbench) -> Outcome:
        """Gives all lessons; ``in_context/naming_4`` is the score of the first task after 4 examples.

        Raises:
            ValueError: if the model cannot talk of several pictures.
        """
        model, sampler = bench.model, bench.samples.sampler
        if not isinstance(model, Talker):
            raise ValueError(f"in_context must have a model that replies to chats, got {type(model).__name__}")
        marks = {}
        for examples in NUMBERS:
            bench.say(f"learning from {examples} examples")
            for names, lesson, examine in _TASKS:
                lessons = {f"{index}": lesson(sampler, index, examples) for index in range(self.number)}
                found, failed = attempted(partial(examine, model, sampler), lessons, bench.batch_size)
                for place, name in enumerate(names):
                    each = {item: values[place] for item, values in found.items()}
                    marks[f"in_context/{name}_{examples}"] = Marks(each=each, failed=failed)
        return Outcome(marks=marks)


@dataclass(frozen=True)
class Lesson:
    """Examples, and a picture of which to say the like."""

    request: str
    """What the user says to each picture."""
    examples: tuple[tuple[Scene, str], ...]
    """Scenes with what the assistant is made to say of each."""
    scene: Scene
    right: str
    """What it should say of this one."""
    wrong: str | None = None
    """What it would say if it took this thing for the other."""


def naming_lesson(sampler: SceneSampler, index: int, number: int) -> Lesson:
    """Returns a lesson of a number of examples that name two things by turns: from two on, both are named.

    The same index asks the same after any number of examples, and those of fewer are the last of more. The last one is
    as often of the other thing as of the one that is asked for, so who repeats the last name is right in half of all.

    Raises:
        ValueError: if the sampler has scenes of one thing alone.
    """
    rng = random.Random(f"naming/{index}")
    scene = sampler.scene(rng, "one")
    asked = _thing(scene)
    other = _other_thing(sampler, rng, asked)
    names = dict(zip((asked, other), map(with_article, rng.sample(WORDS, 2)), strict=True))
    order = rng.sample((asked, other), 2)
    shown = [sampler.scene(rng, "one", order[place % 2]) for place in range(number)]
    examples = tuple((one, names[_thing(one)]) for one in reversed(shown))
    return Lesson(NAMING_QUESTION, examples, scene, names[asked], names[other])


def caption_lesson(sampler: SceneSampler, index: int, number: int) -> Lesson:
    """Returns a lesson of a number of examples in which pictures are captioned plainly, as ``naming_lesson``."""
    rng = random.Random(f"caption/{index}")
    tasks = [_CAPTION_TASKS[(index + place) % len(_CAPTION_TASKS)] for place in range(number + 1)]
    scenes = [sampler.scene(rng, task) for task in tasks]
    texts = [plain_caption(one, sampler.pack, has_style=False, has_background=False) for one in scenes]
    told = [*zip(scenes, texts, strict=True)]
    return Lesson(DESCRIBE_REQUEST, tuple(reversed(told[1:])), *told[0])


def chat_of(lesson: Lesson, pack: EmojiPack, look: Callable[[Image.Image], Picture]) -> list[Message]:
    """Returns the chat of a lesson up to where the assistant is to speak of the last picture."""

    def shown(scene: Scene) -> Message:
        picture = look(Image.fromarray(draw(scene, pack)))
        return Message("user", (picture, lesson.request))

    turns = [(shown(scene), Message("assistant", (said,))) for scene, said in lesson.examples]
    return [*(message for turn in turns for message in turn), shown(lesson.scene)]


def _named(model: Talker, sampler: SceneSampler, lessons: Sequence[Lesson]) -> list[tuple[float, ...]]:
    """Returns whether the model says the right name, and whether it finds that likelier than the wrong one."""
    chats = [chat_of(one, sampler.pack, model.look) for one in lessons]
    replies = model.replies(chats)
    right = _likelihoods(model, chats, [one.right for one in lessons])
    wrong = _likelihoods(model, chats, [one.wrong for one in lessons if one.wrong])
    return [
        (_same(text, one.right), (likely > unlikely) + (likely == unlikely) / 2)
        for one, text, likely, unlikely in zip(lessons, replies, right, wrong, strict=True)
    ]


def _described(model: Talker, sampler: SceneSampler, lessons: Sequence[Lesson]) -> list[tuple[float, ...]]:
    """Returns whether the model says the plainest caption, and the share of its facts that the model tells."""
    reader = CaptionReader(sampler.pack, sampler.concepts)
    replies = model.replies([chat_of(one, sampler.pack, model.look) for one in lessons])
    facts = [reader.facts(one.right) for one in lessons]
    return [
        (_same(text, one.right), len(known & reader.facts(text)) / len(known))
        for one, text, known in zip(lessons, replies, facts, strict=True)
    ]


def _same(text: str, right: str) -> float:
    return float(normalized(text) == normalized(right))


def _likelihoods(model: Talker, chats: Sequence[Sequence[Message]], texts: Sequence[str]) -> list[float]:
    return [float(each.sum()) for each in model.log_likelihoods(chats, texts)]


def _thing(scene: Scene) -> str:
    return scene.items[0].concept_id


def _other_thing(sampler: SceneSampler, rng: random.Random, thing: str) -> str:
    """Returns another thing of which there are scenes."""
    for _ in range(_MAX_TRIES):
        if (other := _thing(sampler.scene(rng, "one"))) != thing:
            return other
    raise ValueError(f"concepts must hold two with {sampler.split} scenes, got {len(sampler.concepts)} concepts")


_TASKS = ((("naming", "choice"), naming_lesson, _named), (("captions", "facts"), caption_lesson, _described))
"""Names of the scores, what makes a lesson, and what examines the model on lessons."""
