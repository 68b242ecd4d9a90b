"""LongText-Bench's prompts: pictures with long texts in them, of eight kinds, short and long.

Source: Geng et al., "X-Omni: Reinforcement Learning Makes Discrete Autoregressive Image Generative Models Great Again",
https://arxiv.org/abs/2507.22058; its files and folders at https://github.com/X-Omni-Team/X-Omni (textbench).
Differs: English alone; the Chinese prompts are scored by letters, which is not done here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.evaluation.prompt_sets.contract import PlannedPicture
from rebus.evaluation.prompt_sets.lines import json_lines, refuse_empty, text_field, whole_number
from rebus.evaluation.prompt_sets.word_recall import words

LENGTHS = ("short", "long")


@dataclass(frozen=True)
class LongTextPrompt:
    """One line of the file."""

    id: str
    text: str
    category: str
    """What shows the texts, such as a sign."""
    length: str
    """Of the texts: one of ``LENGTHS``."""
    texts: tuple[str, ...]
    """What shall be read."""

    @property
    def groups(self) -> Sequence[str]:
        """The category and the length."""
        return self.category, self.length

    def planned(self, num_samples: int) -> list[PlannedPicture]:
        """Returns the pictures of the prompt in the folder that LongText-Bench's scorer reads."""
        return [
            PlannedPicture(self.id, sample, self.text, f"{self.id}_{sample + 1}.png", (sample,))
            for sample in range(num_samples)
        ]


def read_longtext(path: Path) -> list[LongTextPrompt]:
    """Returns the prompts of a file such as LongText-Bench's ``text_prompts.jsonl``.

    Raises:
        ValueError: if it is no such file; the message names the line.
    """
    prompts: list[LongTextPrompt] = []
    seen: set[str] = set()
    for place, record in json_lines(path):
        identifier = f"{whole_number(record, 'prompt_id', place, 0):04d}"
        if identifier in seen:
            raise ValueError(f"{place}: prompt_id must be that of no other line, got {identifier} again")
        seen.add(identifier)
        length = text_field(record, "length", place)
        if length not in LENGTHS:
            raise ValueError(f"{place}: length must be one of {', '.join(LENGTHS)}, got {length!r}")
        category, text = (text_field(record, name, place) for name in ("category", "prompt"))
        prompts.append(LongTextPrompt(identifier, text, category, length, _texts(record, place)))
    refuse_empty(prompts, path)
    return prompts


def _texts(record: dict[str, Any], place: str) -> tuple[str, ...]:
    texts = record.get("text")
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"{place}: text must be a list of texts, got {texts!r}")
    if not words(" ".join(texts)):
        raise ValueError(f"{place}: text must hold at least one word, got {texts!r}")
    if any("\u4e00" <= letter <= "\u9fff" for one in texts for letter in one):
        raise ValueError(f"{place}: text must be English, got Chinese")
    return tuple(texts)
