"""What a set of prompts must be: prompts in groups, and the pictures to draw for them, where their scorer looks.

A picture that is planned has its place in a folder, so that a benchmark's own scorer finds it there, and its seeds, so
that it is the same picture whatever else is drawn.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Prompt(Protocol):
    """One prompt of a set."""

    @property
    def id(self) -> str:
        """No other prompt of the set has it."""
        ...

    @property
    def text(self) -> str:
        """What to draw."""
        ...

    @property
    def groups(self) -> Sequence[str]:
        """Names of the scores that it counts for, the set's own kinds of prompts; the first is its task."""
        ...


@dataclass(frozen=True)
class PlannedPicture:
    """A picture to draw."""

    prompt_id: str
    sample: int
    """Which of a prompt's pictures it is, from 0."""
    text: str
    """What is asked for."""
    file: str
    """Its place in the folder, with ``/``."""
    seeds: Sequence[int]
    """One, or those of the pictures that fill a square grid, row by row."""
    beside: tuple[str, str] | None = None
    """Place and text of a file that belongs to it."""

    @property
    def id(self) -> str:
        """The prompt's id and the sample."""
        return f"{self.prompt_id}/{self.sample}"


P = TypeVar("P", bound=Prompt)


def limited(prompts: Sequence[P], limit: int) -> tuple[P, ...]:
    """Returns the first prompts of each task, so many at most.

    Raises:
        ValueError: if the limit is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    seen: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        seen[prompt.groups[0]] += 1
        if seen[prompt.groups[0]] <= limit:
            kept.append(prompt)
    return tuple(kept)
