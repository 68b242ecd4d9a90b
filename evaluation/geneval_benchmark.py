"""GenEval on a model that knows emoji: its prompts that these cover, by its rules, with our judges for its detector.

What the rules are and where they depart from GenEval's stands in ``prompt_sets/geneval_rules.py``. No prompt with a
color can be judged by the concepts of emoji, so of the six tasks ``colors`` and ``color_attr`` have no score, and the
overall score is the mean of the tasks that have one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange

from rebus.data.emoji import EmojiPack
from rebus.evaluation.benchmark import SECOND_JUDGE, Marks, Outcome, Shown, Workbench, attempted
from rebus.evaluation.judges import ObjectFinder
from rebus.evaluation.prompt_sets.contract import PlannedPicture, limited
from rebus.evaluation.prompt_sets.drawing import Pictures, drawn
from rebus.evaluation.prompt_sets.geneval import TASKS, GenEvalPrompt, read_geneval, reworded, uncovered
from rebus.evaluation.prompt_sets.geneval_rules import GenEvalResult, judged

Wording = Literal["as_is", "reworded"]
"""The prompts of the file, or what they ask for in the words of our captions."""


@dataclass(frozen=True, kw_only=True)
class GenEvalBenchmark:
    """Prompts of a file such as GenEval's ``evaluation_metadata.jsonl``."""

    path: Path | None = None
    """The file."""
    number: int = 100
    """Most prompts of each task."""
    num_samples: int = 4
    """Pictures of each prompt."""
    wording: Wording = "as_is"
    """Scores of other words than the file's are no scores of GenEval, and bear another name."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "geneval" if self.wording == "as_is" else "geneval_reworded"

    @property
    def is_judged(self) -> bool:
        """Judges find the objects."""
        return True

    def check(self) -> None:
        """Reads the file.

        Raises:
            ValueError: if it holds no such prompts.
        """
        self._prompts()

    def run(self, bench: Workbench) -> Outcome:
        """Draws all prompts that are covered, and marks the pictures by each judge."""
        pack, concepts, prompts = bench.samples.pack, bench.samples.sampler.concepts, self._prompts()
        covered, coverage = covered_prompts(prompts, pack, concepts)
        kept = {prompt.id: prompt for prompt in limited(covered, self.number)}
        plan = geneval_plan(list(kept.values()), pack, concepts, self.num_samples, self.wording)
        pictures, undrawn = drawn(bench, plan)
        marks: dict[str, Marks] = {}
        others = {f"{self.name}_coverage/{what}": float(number) for what, number in coverage.items()}
        shown: dict[str, Shown] = {}
        for place, judge in enumerate(bench.judges):
            group = f"{SECOND_JUDGE}/{self.name}" if place else self.name
            results, failed = geneval_results(judge.finder, kept, plan, pictures, pack, concepts, bench.batch_size)
            found = _marks(plan, kept, results, {**undrawn, **failed})
            marks |= {f"{group}/{task}": one for task, one in found.items()}
            scores = [sum(one.each.values()) / len(one.each) for one in found.values() if one.each]
            if scores:
                others[f"{self.name}/{'overall_by_second_judge' if place else 'overall'}"] = sum(scores) / len(scores)
            if not place:
                shown = {item: _shown(item, plan, picture, results) for item, picture in pictures.items()}
        return Outcome(marks=marks, shown=shown, others=others)

    def _prompts(self) -> list[GenEvalPrompt]:
        assert self.path is not None, "the report runs no benchmark without its path"
        return read_geneval(self.path)


def covered_prompts(
    prompts: Sequence[GenEvalPrompt], pack: EmojiPack, concepts: Sequence[str]
) -> tuple[list[GenEvalPrompt], Mapping[str, int]]:
    """Returns the prompts that can be asked for and judged, and how many there are of each kind, covered and not."""
    covered: list[GenEvalPrompt] = []
    counts = Counter({"prompts": len(prompts), "covered": 0})
    for prompt in prompts:
        reason = uncovered(prompt, pack, concepts)
        if reason is None:
            covered.append(prompt)
        counts[reason or "covered"] += 1
    return covered, counts


def geneval_plan(
    prompts: Sequence[GenEvalPrompt], pack: EmojiPack, concepts: Sequence[str], num_samples: int, wording: Wording
) -> list[PlannedPicture]:
    """Returns the pictures of prompts that are covered."""
    words = {prompt.id: None if wording == "as_is" else reworded(prompt, pack, concepts) for prompt in prompts}
    return [picture for prompt in prompts for picture in prompt.planned(num_samples, words[prompt.id])]


def geneval_results(
    finder: ObjectFinder,
    prompts: Mapping[str, GenEvalPrompt],
    plan: Sequence[PlannedPicture],
    pictures: Pictures,
    pack: EmojiPack,
    concepts: Sequence[str],
    batch_size: int,
) -> tuple[dict[str, GenEvalResult], dict[str, str]]:
    """Returns what the rules say of each picture, by item, and why they say nothing of the others."""

    def results(part: Sequence[PlannedPicture]) -> list[GenEvalResult]:
        pixels = torch.from_numpy(np.stack([pictures[planned.id] for planned in part]))
        found = finder.detect(rearrange(pixels, "b h w c -> b c h w") / 255)
        return [
            judged(prompts[planned.prompt_id], planned, objects, pack, concepts)
            for planned, objects in zip(part, found, strict=True)
        ]

    return attempted(results, {one.id: one for one in plan if one.id in pictures}, batch_size)


def _marks(
    plan: Sequence[PlannedPicture],
    prompts: Mapping[str, GenEvalPrompt],
    results: Mapping[str, GenEvalResult],
    failed: Mapping[str, str],
) -> dict[str, Marks]:
    """Returns the marks of each task that has any picture."""
    found = {}
    for task in TASKS:
        items = [one.id for one in plan if prompts[one.prompt_id].task == task]
        each = {item: float(results[item].correct) for item in items if item in results}
        if items:
            found[task] = Marks(each=each, failed={item: failed[item] for item in items if item in failed})
    return found


def _shown(
    item: str, plan: Sequence[PlannedPicture], picture: np.ndarray, results: Mapping[str, GenEvalResult]
) -> Shown:
    text = next(one.text for one in plan if one.id == item)
    if item not in results:
        return Shown(prompt=text, picture=picture, passed=None, seen="the judge failed")
    result = results[item]
    seen = ", ".join(f"{len(objects)} {name}" for name, objects in result.found.items())
    return Shown(prompt=text, picture=picture, passed=result.correct, seen=seen or "nothing asked for")
