"""Samples about composed scenes: captions, questions, edits and stories, as documents and as chats."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from rebus.data.captions import (
    BACKGROUND_RATE,
    STYLE_RATE,
    canonical_caption,
    caption,
    description,
    plain_caption,
)
from rebus.data.samples import Message, Picture, Sample
from rebus.data.scene_edits import EDIT_TASKS, Edit, edit, story
from rebus.data.scene_questions import QuestionAnswer, drill, questions
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import Scene, draw

DOCUMENT_WEIGHTS = {"caption": 0.6, "questions": 0.25, "edit": 0.1, "story": 0.05}
CHAT_WEIGHTS = {"draw": 0.36, "questions": 0.48, "describe": 0.07, "edit": 0.05, "story": 0.04}
CHAT_KINDS = (*CHAT_WEIGHTS, "drill")
"""Kinds of chats: those above, and many questions about one picture, each by itself."""
TASK_WEIGHTS = {"one": 0.1, "background": 0.06, "two": 0.14, "position": 0.18, "count": 0.2, "sign": 0.32}
"""How often scenes of each task are drawn, described and asked about: what is learned soonest, least often."""
DRILL_TASK_WEIGHTS = {"one": 0.1, "background": 0.04, "two": 0.25, "position": 0.25, "count": 0.22, "sign": 0.14}
"""The same for pictures about which many questions are asked: two things above all."""
DRILL_OTHERS_RATE, DRILL_DESCRIBE_RATE = 0.15, 0.25
"""How often such questions are about other things, and how often a description is among them."""
SHUFFLED_SIGN_RATE = 0.5
"""How often the letters of a sign are shuffled, so that signs are spelled out rather than known by heart."""
OTHERS_RATE = 0.5
"""How often the questions of a chat are about other things than the sampler's, where there are any."""
OTHERS_KINDS = ("color", "style", "count", "text")
"""Questions about other things: none whose answer is the name of one."""
CAPTION_FIRST_RATE = 2 / 3
"""How often the caption of a document comes before its picture: to draw is harder to learn than to tell."""
TEXT_DROP_RATE = 0.1
"""How often the text that asks for a picture is left out, so that guidance has a branch without it."""
DESCRIBE_REQUEST = "Describe the picture."
_DRAW_REQUESTS = ("Draw {}.", "draw {}", "Please draw {}.", "Can you draw {}?", "Make a picture of {}.")


class SceneSamples:
    """Makes samples, and the parts they consist of, from the scenes of one sampler.

    Args:
        sampler: scenes to draw, describe and ask about.
        chats: how often each of ``CHAT_KINDS`` is made.
        others: scenes of other things, for questions of ``OTHERS_KINDS`` alone: what a style is and how things are
            counted is learned from many things, for things that were never seen in that style or number.
    """

    def __init__(
        self,
        sampler: SceneSampler,
        others: SceneSampler | None = None,
        chats: Mapping[str, float] = MappingProxyType(CHAT_WEIGHTS),
    ):
        self.sampler, self.others, self.chats = sampler, others, chats
        self.pack = sampler.pack

    def document(self, rng: random.Random) -> Sample:
        """Returns a document for pretraining: picture and caption in either order, questions, an edit or a story."""
        kind = _draw_kind(rng, DOCUMENT_WEIGHTS)
        if kind == "caption":
            parts = self._caption_parts(rng)
        elif kind == "questions":
            scene, asked = self.questions(rng)
            parts = [self._picture(scene), "\n".join(f"Q: {one.question} A: {one.answer}" for one in asked)]
        elif kind == "edit":
            scene, change = self.edit(rng)
            parts = [self._picture(scene), change.instruction, self._picture(change.scene)]
        else:
            parts = self._story_parts(story(rng, self.sampler))
        return Sample((Message("document", tuple(parts)),))

    def chat(self, rng: random.Random) -> Sample:
        """Returns a chat for supervised finetuning; what the assistant says or draws follows from what it was told."""
        kind = _draw_kind(rng, self.chats)
        if kind == "draw":
            scene = self._scene(rng, self.sampler)
            request = () if rng.random() < TEXT_DROP_RATE else (self._draw_request(scene, rng),)
            return _chat(request, (self._picture(scene),))
        if kind == "drill":
            return self._drill(rng)
        if kind == "questions":
            scene, asked = self._questions_of_chat(rng)
            turns = [part for one in asked for part in ((one.question,), (one.answer,))]
            return _chat((self._picture(scene), *turns[0]), *turns[1:])
        if kind == "describe":
            scene = self._scene(rng, self.sampler)
            return _chat((self._picture(scene), DESCRIBE_REQUEST), (description(scene, self.pack),))
        if kind == "edit":
            scene, change = self.edit(rng)
            return _chat((self._picture(scene), change.instruction), (self._picture(change.scene),))
        told = story(rng, self.sampler)
        hero = self.pack.concepts[told[0][1].items[0].concept_id].name
        about = hero.plural if told[0][1].task == "count" else hero.singular
        request = f"Tell a story about {about} in {'two' if len(told) == 2 else 'three'} pictures."
        return _chat((request,), tuple(self._story_parts(told)))

    def prompt(self, rng: random.Random, task: str | None = None) -> tuple[Scene, str]:
        """Returns a scene to ask for, and its canonical caption with style and background."""
        scene = self.sampler.scene(rng, task)
        return scene, canonical_caption(scene, self.pack)

    def questions(self, rng: random.Random) -> tuple[Scene, list[QuestionAnswer]]:
        """Returns a scene and questions that it can answer, three to six."""
        scene = self._scene(rng, self.sampler)
        return scene, questions(scene, rng, self.sampler)

    def _drill(self, rng: random.Random) -> Sample:
        if self.others is not None and rng.random() < DRILL_OTHERS_RATE:
            scene, asked = self._questions_about_others(rng, self.others)
        else:
            scene = self._scene(rng, self.sampler, DRILL_TASK_WEIGHTS)
            asked = drill(scene, rng, self.sampler)
            if rng.random() < DRILL_DESCRIBE_RATE:
                asked.append(QuestionAnswer("describe", DESCRIBE_REQUEST, description(scene, self.pack)))
        told = tuple((one.question, one.answer) for one in asked)
        return Sample((Message("user", (self._picture(scene),)),), told)

    def _questions_of_chat(self, rng: random.Random) -> tuple[Scene, list[QuestionAnswer]]:
        if self.others is not None and rng.random() < OTHERS_RATE:
            return self._questions_about_others(rng, self.others)
        return self.questions(rng)

    def _questions_about_others(self, rng: random.Random, others: SceneSampler) -> tuple[Scene, list[QuestionAnswer]]:
        scene = self._scene(rng, others)
        return scene, [one for one in questions(scene, rng, others) if one.kind in OTHERS_KINDS]

    def edit(self, rng: random.Random, kind: str | None = None) -> tuple[Scene, Edit]:
        """Returns a scene and a change to it, each kind as often as the others."""
        kind = rng.choice(tuple(EDIT_TASKS)) if kind is None else kind
        while True:
            scene = self.sampler.scene(rng, rng.choice(EDIT_TASKS[kind]))
            change = edit(scene, rng, self.sampler, kind)
            if change is not None:
                return scene, change

    def _scene(
        self, rng: random.Random, sampler: SceneSampler, weights: Mapping[str, float] = MappingProxyType(TASK_WEIGHTS)
    ) -> Scene:
        scene = sampler.scene(rng, _draw_kind(rng, weights))
        if scene.sign is None or rng.random() >= SHUFFLED_SIGN_RATE:
            return scene
        shuffled = replace(scene, sign="".join(rng.sample(scene.sign, len(scene.sign))))
        return shuffled if sampler.is_in_split(shuffled) else scene

    def _caption_parts(self, rng: random.Random) -> list[str | Picture]:
        scene = self._scene(rng, self.sampler)
        picture = self._picture(scene)
        if rng.random() < TEXT_DROP_RATE:
            return [picture]
        text = caption(scene, rng, self.pack)
        return [text, picture] if rng.random() < CAPTION_FIRST_RATE else [picture, text]

    def _draw_request(self, scene: Scene, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return caption(scene, rng, self.pack)
        has_style, has_background = rng.random() < STYLE_RATE, rng.random() < BACKGROUND_RATE
        text = plain_caption(scene, self.pack, has_style=has_style, has_background=has_background)
        return rng.choice(_DRAW_REQUESTS).format(text)

    def _story_parts(self, told: Sequence[tuple[str, Scene]]) -> list[str | Picture]:
        return [part for sentence, scene in told for part in (sentence, self._picture(scene))]

    def _picture(self, scene: Scene) -> Picture:
        return Picture(pixels=draw(scene, self.pack))


def _draw_kind(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


def _chat(*turns: Sequence[str | Picture]) -> Sample:
    roles = ("user", "assistant")
    return Sample(tuple(Message(roles[index % 2], tuple(turn)) for index, turn in enumerate(turns)))
