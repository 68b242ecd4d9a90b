"""A score and how far it can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

NUM_RESAMPLES = 4000
"""With so many, the ends of an interval move by about a fiftieth of its width from one seed to the next."""
_Z_95 = 1.959964
"""Standard deviations of a normal distribution that hold 95 % of it."""
_MOST_DRAWN = 2**22
"""Numbers drawn at a time."""


@dataclass(frozen=True)
class Score:
    """The mean of marks with its 95 % interval."""

    score: float
    """In [0, 1] where the marks are."""
    low: float
    high: float
    n: int
    """Number of marks."""


def bootstrap(marks: Sequence[bool | float], generator: torch.Generator) -> Score:
    """Returns the mean of marks with its 95 % interval by resampling them.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, sec. 13.3 (percentile interval).

    Raises:
        ValueError: if there are no marks.
    """
    if not marks:
        raise ValueError("marks must be at least one, got none")
    values, means = torch.tensor(marks, dtype=torch.double), []
    resamples = max(1, _MOST_DRAWN // len(values))
    for begin in range(0, NUM_RESAMPLES, resamples):
        shape = (min(resamples, NUM_RESAMPLES - begin), len(values))
        means.append(values[torch.randint(len(values), shape, generator=generator)].mean(dim=1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Score(math.fsum(marks) / len(marks), low, high, len(marks))


def is_right_or_wrong(marks: Sequence[bool | float]) -> bool:
    """Returns whether all marks are 0 or 1."""
    return all(mark in (0, 1) for mark in marks)


def wilson(marks: Sequence[bool | float]) -> Score:
    """Returns the mean of marks in [0, 1] with its 95 % Wilson interval.

    Marks between 0 and 1 vary no more than right-or-wrong ones of the same mean, so for them the interval is cautious.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.

    Raises:
        ValueError: if there are no marks, or one is outside [0, 1].
    """
    if not marks:
        raise ValueError("marks must be at least one, got none")
    if not all(0 <= mark <= 1 for mark in marks):
        raise ValueError(f"marks must be in [0, 1], got {min(marks)} to {max(marks)}")
    number, share = len(marks), math.fsum(marks) / len(marks)
    widening = _Z_95**2 / number
    centre = (share + widening / 2) / (1 + widening)
    reach = math.sqrt(share * (1 - share) * widening + widening**2 / 4) / (1 + widening)
    return Score(share, max(0.0, centre - reach), min(1.0, centre + reach), number)
