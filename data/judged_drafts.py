"""Drafts of a picture with what the model that drew them says of each, and the samples that are made of both.

A model judges a drawing in two ways: by the mark that ``best_of`` goes by, and by how it describes the drawing. The
best-marked draft of those that it describes as the prompt asked is kept: it becomes what should have been drawn. An
assessment shows the model a drawing of its own and asks whether this is what was asked for; yes, it learns to say, or
no and what it sees instead.

Source: Wang et al., "ILLUME: Illuminating Your LLMs to See, Draw, and Self-Enhance", https://arxiv.org/abs/2412.06673,
its self-enhancing multimodal alignment, for the assessments; Dong et al., "RAFT: Reward rAnked FineTuning for
Generative Foundation Model Alignment", https://arxiv.org/abs/2304.06767, for learning to draw the best-ranked draft.
Differs: the model that drew is the only one that assesses and ranks.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rebus.data.samples import Message, Picture, Sample
from rebus.data.scenes import Item, Scene
from rebus.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Draft:
    """One drawing, and what the model says of it."""

    codes: list[int]
    """As ``Vocabulary.flatten`` gives them."""
    mark: float
    """By which the best of several drafts is told from the others: the higher, the better."""
    description: str
    """What the model says that it shows."""


@dataclass(frozen=True, kw_only=True)
class JudgedDrafts:
    """All drafts for one prompt."""

    scene: Scene
    prompt: str
    seed: int
    """With which the first was drawn, and any of them is painted."""
    wanted: list[str]
    """Descriptions of pictures that show what the prompt says."""
    drafts: list[Draft]

    def passed(self, draft: Draft) -> bool:
        """Whether a draft shows what was asked for, as the model sees it."""
        return draft.description in self.wanted

    @property
    def kept(self) -> Draft | None:
        """The draft with the best mark of those that passed; the first of equals."""
        return max((one for one in self.drafts if self.passed(one)), key=lambda one: one.mark, default=None)

    @property
    def rejected(self) -> Draft | None:
        """The draft with the worst mark of those that did not pass; the first of equals."""
        return min((one for one in self.drafts if not self.passed(one)), key=lambda one: one.mark, default=None)


def drawn_sample(prompt: str, draft: Draft, vocabulary: Vocabulary) -> Sample:
    """Returns a chat in which a draft is the answer to the prompt."""
    return Sample((Message("user", (prompt,)), Message("assistant", (_picture(draft, vocabulary),))))


def assessments(judged: JudgedDrafts, vocabulary: Vocabulary) -> list[Sample]:
    """Returns a chat about the kept draft and one about the rejected one; none unless there are both.

    So a prompt is as often told to be shown as not to be, and only the picture says which is right.
    """
    if judged.kept is None or judged.rejected is None:
        return []
    return [_assessment(judged, draft, vocabulary) for draft in (judged.kept, judged.rejected)]


def drafts_file(judged: Sequence[JudgedDrafts]) -> bytes:
    """Returns a file of the drafts of some prompts, a prompt a line."""
    return "".join(f"{json.dumps(asdict(one))}\n" for one in judged).encode()


def read_drafts(path: Path) -> list[JudgedDrafts]:
    """Returns what is in such a file."""
    return [_read(line) for line in path.read_text().splitlines()]


def _read(line: str) -> JudgedDrafts:
    values = json.loads(line)
    scene = values.pop("scene")
    items = tuple(Item(**item) for item in scene.pop("items"))
    drafts = [Draft(**draft) for draft in values.pop("drafts")]
    return JudgedDrafts(scene=Scene(items, **scene), drafts=drafts, **values)


def _assessment(judged: JudgedDrafts, draft: Draft, vocabulary: Vocabulary) -> Sample:
    request = Message("user", (_picture(draft, vocabulary), f"Does the picture show {judged.prompt}?"))
    verdict = "yes" if judged.passed(draft) else f"no, it shows {draft.description}"
    return Sample((request, Message("assistant", (verdict,))))


def _picture(draft: Draft, vocabulary: Vocabulary) -> Picture:
    return Picture(tokens=vocabulary.unflatten(draft.codes))
