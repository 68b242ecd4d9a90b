"""GenEval's prompts: six tasks, and for each prompt the objects that must be there, how many, how they stand, what not.

Source: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment",
https://arxiv.org/abs/2310.11513, sec. 3; its files and folders at https://github.com/djghosh13/geneval.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.data.emoji import EmojiPack
from rebus.evaluation.prompt_sets.contract import PlannedPicture
from rebus.evaluation.prompt_sets.geneval_classes import CLASS_LABELS
from rebus.evaluation.prompt_sets.lines import json_lines, refuse_empty, text_field, whole_number

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
POSITIONS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
}
"""How one object stands to another, and how our captions say it."""


@dataclass(frozen=True)
class Asked:
    """Objects of one class that a prompt asks for, or rules out."""

    name: str
    """Their class."""
    count: int
    """At least so many must be there; of those ruled out, so many must not be."""
    color: str | None
    position: tuple[str, int] | None
    """A key of ``POSITIONS``, and the number of what they stand so to, counted among all that is asked for."""


@dataclass(frozen=True)
class GenEvalPrompt:
    """One line of the file."""

    id: str
    text: str
    task: str
    include: tuple[Asked, ...]
    exclude: tuple[Asked, ...]
    record: str
    """The line, as its own scorer wants it back."""

    @property
    def groups(self) -> Sequence[str]:
        """The task."""
        return (self.task,)

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes that it speaks of."""
        return tuple(one.name for one in self.include + self.exclude)

    def planned(self, num_samples: int, wording: str | None = None) -> list[PlannedPicture]:
        """Returns the pictures of the prompt, or of other words for it, in the folders that GenEval's scorer reads."""
        return [
            PlannedPicture(
                prompt_id=self.id,
                sample=sample,
                text=self.text if wording is None else wording,
                file=f"{self.id}/samples/{sample:05d}.png",
                seeds=(sample,),
                beside=(f"{self.id}/metadata.jsonl", self.record),
            )
            for sample in range(num_samples)
        ]


def read_geneval(path: Path) -> list[GenEvalPrompt]:
    """Returns the prompts of a file such as GenEval's ``evaluation_metadata.jsonl``, numbered from ``00000``.

    Raises:
        ValueError: if it is no such file; the message names the line.
    """
    prompts = []
    for place, record in json_lines(path):
        task = text_field(record, "tag", place)
        if task not in TASKS:
            raise ValueError(f"{place}: tag must be one of {', '.join(TASKS)}, got {task!r}")
        include = _asked(record, "include", place)
        if not include:
            raise ValueError(f"{place}: include must ask for at least one object, got none")
        prompts.append(
            GenEvalPrompt(
                id=f"{len(prompts):05d}",
                text=text_field(record, "prompt", place),
                task=task,
                include=include,
                exclude=_asked(record, "exclude", place),
                record=json.dumps(record),
            )
        )
    refuse_empty(prompts, path)
    return prompts


def uncovered(prompt: GenEvalPrompt, pack: EmojiPack, concepts: Collection[str]) -> str | None:
    """Returns why a prompt cannot be asked of a model of these concepts and judged, in a word; none if it can.

    An emoji has the colours that it has, and its concept says nothing of them, so no prompt with a colour can.
    """
    if any(one.color is not None for one in prompt.include + prompt.exclude):
        return "with_color"
    return None if all(known_concepts(name, pack, concepts) for name in prompt.classes) else "without_emoji"


def known_concepts(name: str, pack: EmojiPack, concepts: Collection[str]) -> tuple[str, ...]:
    """Returns those of the concepts that show a thing of the class, the plainest first."""
    shown = (pack.find(label).id for label in CLASS_LABELS.get(name, ()))
    return tuple(concept for concept in shown if concept in concepts)


def reworded(prompt: GenEvalPrompt, pack: EmojiPack, concepts: Collection[str]) -> str:
    """Returns a prompt that is covered in the words of our captions: ``an automobile``, ``two pizzas``.

    Scores of rewritten prompts must be told apart from those of the prompts as they are.
    """
    assert uncovered(prompt, pack, concepts) is None
    names = [pack.concepts[known_concepts(one.name, pack, concepts)[0]].name for one in prompt.include]
    if len(names) == 1:
        return names[0].singular if prompt.include[0].count == 1 else names[0].counted(prompt.include[0].count)
    first, second = names[0], names[1]
    stands = prompt.include[1].position
    if stands is None:
        return f"{first.singular} and {second.singular}"
    return f"{second.singular} {POSITIONS[stands[0]]} {first.singular}"


def _asked(record: dict[str, Any], name: str, place: str) -> tuple[Asked, ...]:
    """Returns what a record asks for or rules out."""
    listed = record.get(name, [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"{place}: {name} must be a list of objects, got {listed!r}")
    found = []
    for index, one in enumerate(listed):
        at = f"{place}: {name}[{index}]"
        color = one.get("color")
        if color is not None and not isinstance(color, str):
            raise ValueError(f"{at}: color must be a text, got {color!r}")
        found.append(
            Asked(text_field(one, "class", at), whole_number(one, "count", at, 1), color, _position(one, index, at))
        )
    return tuple(found)


def _position(one: dict[str, Any], index: int, at: str) -> tuple[str, int] | None:
    value = one.get("position")
    if value is None:
        return None
    match value:
        case [str(way), int(target)] if way in POSITIONS and 0 <= target < index:
            return way, target
    raise ValueError(f"{at}: position must be one of {', '.join(POSITIONS)} and an earlier number, got {value!r}")
