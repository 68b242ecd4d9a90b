"""A score and how far it can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z_95 = 1.959964
"""Standard deviations of a normal distribution that hold 95 % of it."""


@dataclass(frozen=True)
class Score:
    """A share of right answers with its 95 % interval."""

    score: float
    """In [0, 1]."""
    low: float
    high: float
    n: int
    """Number of answers."""


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
