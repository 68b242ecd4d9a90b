"""How many of the words that prompts ask for can be read in what a model draws: LongText-Bench and PartiPrompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebus.evaluation.benchmark import Marks, Outcome, Shown, Workbench, attempted
from rebus.evaluation.prompt_sets.contract import PlannedPicture, limited
from rebus.evaluation.prompt_sets.drawing import Pictures, drawn
from rebus.evaluation.prompt_sets.longtext import LongTextPrompt, read_longtext
from rebus.evaluation.prompt_sets.parti import PartiPrompt, read_parti
from rebus.evaluation.prompt_sets.word_recall import WordRecall, text_score, word_recall

_ALL = "all"
WrittenPrompt = LongTextPrompt | PartiPrompt
"""A prompt with texts that shall be read."""


@dataclass(frozen=True, kw_only=True)
class WordsBenchmark:
    """Those prompts of a file that say which words shall be read.

    Of PartiPrompts they put them in quotation marks; only these can be scored without people. The others are counted,
    and drawn by ``rebus.evaluation.draw_prompts``.

    Scores are means over pictures; LongText-Bench's own, of all words together, stands beside them as ``text_score``.
    """

    name: Literal["longtext", "parti"]
    """Whose prompts: a file such as LongText-Bench's ``text_prompts.jsonl``, or one such as ``PartiPrompts.tsv``."""
    path: Path | None = None
    """The file."""
    number: int
    """Most prompts of each category."""
    num_samples: int
    """Pictures of each prompt."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")

    @property
    def is_judged(self) -> bool:
        """The judge's reader reads."""
        return True

    def check(self) -> None:
        """Reads the file.

        Raises:
            ValueError: if it holds no such prompts.
        """
        self._prompts()

    def run(self, bench: Workbench) -> Outcome:
        """Draws the prompts with words and reads the pictures."""
        prompts = self._prompts()
        written = limited([prompt for prompt in prompts if prompt.texts], self.number)
        return _written(bench, self.name, written, self.num_samples, len(prompts))

    def _prompts(self) -> Sequence[WrittenPrompt]:
        assert self.path is not None, "the report runs no benchmark without its path"
        return read_longtext(self.path) if self.name == "longtext" else read_parti(self.path)


def _written(bench: Workbench, name: str, prompts: Sequence[WrittenPrompt], num_samples: int, num_all: int) -> Outcome:
    """Returns how much of the texts of prompts is read in what the model draws, of all and by the prompts' groups."""
    asked = {prompt.id: prompt for prompt in prompts}
    plan = [picture for prompt in prompts for picture in prompt.planned(num_samples)]
    pictures, failed = drawn(bench, plan)
    found, unread = _recalls(bench.judges[0].reader.read, asked, plan, pictures)
    failed = {**failed, **unread}
    groups = [_ALL, *dict.fromkeys(group for prompt in prompts for group in prompt.groups)]
    marks = {}
    for group in groups:
        items = [one.id for one in plan if group == _ALL or group in asked[one.prompt_id].groups]
        marks[f"{name}/{group}"] = Marks(
            each={item: found[item].share for item in items if item in found},
            failed={item: failed[item] for item in items if item in failed},
        )
    others = {f"{name}_coverage/prompts": float(num_all), f"{name}_coverage/covered": float(len(prompts))}
    if found:
        others[f"{name}/text_score"] = text_score(list(found.values()))
    return Outcome(marks=marks, others=others, shown=_shown(plan, pictures, found))


def _recalls(
    read: Callable[..., list[str]],
    asked: Mapping[str, WrittenPrompt],
    plan: Sequence[PlannedPicture],
    pictures: Pictures,
) -> tuple[dict[str, WordRecall], dict[str, str]]:
    def recalls(part: Sequence[PlannedPicture]) -> list[WordRecall]:
        return [word_recall(asked[one.prompt_id].texts, read(pictures[one.id])) for one in part]

    return attempted(recalls, {one.id: one for one in plan if one.id in pictures}, 1)


def _shown(plan: Sequence[PlannedPicture], pictures: Pictures, found: Mapping[str, WordRecall]) -> dict[str, Shown]:
    """Returns the pictures; one passed if all its words can be read."""
    shown = {}
    for one in plan:
        recall, picture = found.get(one.id), pictures.get(one.id)
        if picture is not None:
            passed = None if recall is None else recall.num_read == recall.num_asked
            seen = "the reader failed" if recall is None else f"{recall.num_read} of {recall.num_asked} words"
            shown[one.id] = Shown(prompt=one.text, picture=picture, passed=passed, seen=seen)
    return shown
