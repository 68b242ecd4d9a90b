"""PartiPrompts: prompts of twelve categories and eleven challenges, with no scorer of their own.

What can be scored here are the words that prompts of the challenge ``Writing & Symbols`` put in quotation marks.

Source: Yu et al., "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation",
https://arxiv.org/abs/2206.10789, sec. 5.4; PartiPrompts.tsv of https://github.com/google-research/parti.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebus.evaluation.prompt_sets.contract import PlannedPicture
from rebus.evaluation.prompt_sets.lines import numbered_lines, refuse_empty
from rebus.evaluation.prompt_sets.word_recall import words

_COLUMNS = ("Prompt", "Category", "Challenge", "Note")
_WRITING = "Writing & Symbols"
_QUOTED = re.compile('["\u201c]([^"\u201c\u201d]+)["\u201d]')


@dataclass(frozen=True)
class PartiPrompt:
    """One line of the file."""

    id: str
    text: str
    category: str
    challenge: str

    @property
    def groups(self) -> Sequence[str]:
        """The category and the challenge."""
        return self.category, self.challenge

    @property
    def texts(self) -> tuple[str, ...]:
        """What shall be read in the picture; nothing for most prompts."""
        quoted = _QUOTED.findall(self.text) if self.challenge == _WRITING else []
        return tuple(one for one in quoted if words(one))

    def planned(self, num_samples: int) -> list[PlannedPicture]:
        """Returns the pictures of the prompt, all in one folder."""
        return [
            PlannedPicture(self.id, sample, self.text, f"{self.id}_{sample + 1}.png", (sample,))
            for sample in range(num_samples)
        ]


def read_parti(path: Path) -> list[PartiPrompt]:
    """Returns the prompts of a file such as ``PartiPrompts.tsv``, numbered from ``00000``.

    Raises:
        ValueError: if it is no such file; the message names the line.
    """
    prompts: list[PartiPrompt] = []
    lines = numbered_lines(path)
    place, header = next(lines, (str(path), ""))
    if tuple(header.split("\t")) != _COLUMNS:
        raise ValueError(f"{place}: the first line must name the columns {', '.join(_COLUMNS)}, got {header[:80]!r}")
    for place, line in lines:
        cells = line.split("\t")
        if len(cells) != len(_COLUMNS) or not all(cell.strip() for cell in cells[:3]):
            raise ValueError(
                f"{place}: a line must have {', '.join(_COLUMNS)} with only the last empty, got {line[:80]!r}"
            )
        prompts.append(PartiPrompt(f"{len(prompts):05d}", *cells[:3]))
    refuse_empty(prompts, path)
    return prompts
