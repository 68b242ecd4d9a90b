"""T2I-CompBench's prompts: a file for each category, whose scorers read the prompts from the names of the pictures.

Source: Huang et al., "T2I-CompBench: A Comprehensive Benchmark for Open-world Compositional Text-to-image Generation",
https://arxiv.org/abs/2307.06350; its files and folders at https://github.com/Karine-Huang/T2I-CompBench.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebus.evaluation.prompt_sets.contract import PlannedPicture
from rebus.evaluation.prompt_sets.lines import numbered_lines, refuse_empty

_LONGEST_NAME_BYTES = 255
_FORBIDDEN = "_/\\\0"
"""Scorers cut names at ``_``; the others part folders or end names."""


@dataclass(frozen=True)
class CompBenchPrompt:
    """One line of the file."""

    id: str
    text: str
    category: str

    @property
    def groups(self) -> Sequence[str]:
        """The category."""
        return (self.category,)

    def planned(self, num_samples: int) -> list[PlannedPicture]:
        """Returns the pictures of the prompt in the folder that T2I-CompBench's scorers read; 10 are usual."""
        numbers = (int(self.id) * num_samples + sample for sample in range(num_samples))
        return [
            PlannedPicture(self.id, sample, self.text, f"samples/{self.text}_{number:06d}.png", (sample,))
            for sample, number in enumerate(numbers)
        ]


def read_compbench(path: Path) -> list[CompBenchPrompt]:
    """Returns the prompts of a file such as ``color_val.txt``; its name without ``_val`` is the category.

    Raises:
        ValueError: if a prompt cannot be part of a file's name; the message names the line.
    """
    prompts: list[CompBenchPrompt] = []
    for place, line in numbered_lines(path):
        text = line.split("\t")[0].strip()
        if not text or any(letter in text for letter in _FORBIDDEN):
            raise ValueError(f"{place}: a prompt must be a part of a file's name without _, got {text[:80]!r}")
        if len(f"{text}_000000.png".encode()) > _LONGEST_NAME_BYTES:
            raise ValueError(f"{place}: a prompt must be short enough for a file's name, got {len(text)} letters")
        prompts.append(CompBenchPrompt(f"{len(prompts):05d}", text, path.stem.removesuffix("_val")))
    refuse_empty(prompts, path)
    return prompts
