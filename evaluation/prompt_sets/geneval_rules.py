"""GenEval's rules on what is found in a picture.

Source: Ghosh et al., "GenEval", https://arxiv.org/abs/2310.11513, sec. 3.2; how far apart two objects must be, and the
names of the results, as in https://github.com/djghosh13/geneval (evaluation/evaluate_images.py).
Differs: the objects are emoji, found by one of our judges with its own threshold, which counting shares; objects of a
class are of any of its emoji.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.data.emoji import EmojiPack
from rebus.evaluation.detector import Detection
from rebus.evaluation.prompt_sets.contract import PlannedPicture
from rebus.evaluation.prompt_sets.geneval import Asked, GenEvalPrompt, known_concepts

_APART = 0.1
"""Two centres count as apart only by what is beyond this share of both sizes together."""
_MAIN_WAY = 0.5
"""Share of the whole distance beyond which a way is one in which they are apart."""


@dataclass(frozen=True)
class GenEvalResult:
    """What the rules say of one picture."""

    picture: PlannedPicture
    prompt: GenEvalPrompt
    correct: bool
    reason: str
    """What is wrong with it, a line for each."""
    found: Mapping[str, Sequence[Detection]]
    """The objects of each class, the surest first; only classes of which there are any."""

    def record(self, folder: Path) -> dict[str, Any]:
        """Returns the result by the names that GenEval's ``summary_scores.py`` reads."""
        boxes = {
            name: [
                [one.x - one.size / 2, one.y - one.size / 2, one.x + one.size / 2, one.y + one.size / 2, one.score]
                for one in objects
            ]
            for name, objects in self.found.items()
        }
        return {
            "filename": str(folder / self.picture.file),
            "tag": self.prompt.task,
            "prompt": self.prompt.text,
            "correct": self.correct,
            "reason": self.reason,
            "metadata": self.prompt.record,
            "details": json.dumps(boxes),
        }


def judged(
    prompt: GenEvalPrompt,
    picture: PlannedPicture,
    objects: Sequence[Detection],
    pack: EmojiPack,
    concepts: Collection[str],
) -> GenEvalResult:
    """Returns whether what a judge of these concepts found in a picture is what the prompt asks for."""
    found: dict[str, list[Detection]] = {}
    for name in dict.fromkeys(prompt.classes):
        shown = known_concepts(name, pack, concepts)
        those = sorted((one for one in objects if one.concept_id in shown), key=lambda one: -one.score)
        if those:
            found[name] = those
    wrong = _missing(prompt.include, found)
    wrong += [
        f"expected {one.name}<{one.count}, found {len(found[one.name])}"
        for one in prompt.exclude
        if len(found.get(one.name, ())) >= one.count
    ]
    return GenEvalResult(picture, prompt, not wrong, "\n".join(wrong), found)


def ways(one: Detection, other: Detection) -> set[str]:
    """Returns how the first object stands to the second: none, one or two of ``POSITIONS``."""
    offset = one.x - other.x, one.y - other.y
    distance = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    reach = _APART * (one.size + other.size)
    right, down = (max(abs(way) - reach, 0.0) * (1 if way > 0 else -1) / max(distance, 1e-6) for way in offset)
    signed = {"left of": -right, "right of": right, "above": -down, "below": down}
    return {name for name, share in signed.items() if share > _MAIN_WAY}


def _missing(include: Sequence[Asked], found: Mapping[str, Sequence[Detection]]) -> list[str]:
    """Returns what is asked for and not there, or not where it should be; only the surest objects are looked at."""
    wrong: list[str] = []
    matched: list[Sequence[Detection]] = []
    for one in include:
        objects = found.get(one.name, ())[: one.count]
        problem = None
        if len(objects) < one.count:
            problem = f"expected {one.name}>={one.count}, found {len(objects)}"
        elif one.position is not None:
            problem = _misplaced(one, objects, matched[one.position[1]], one.position[0])
        if problem is not None:
            wrong.append(problem)
        matched.append(() if problem else objects)
    return wrong


def _misplaced(asked: Asked, objects: Sequence[Detection], targets: Sequence[Detection], way: str) -> str | None:
    if not targets:
        return f"no target for {asked.name} to be {way}"
    for one in objects:
        for target in targets:
            if way not in (seen := ways(one, target)):
                return f"expected {asked.name} {way} target, found {' and '.join(sorted(seen))} target"
    return None
