"""What arms of an experiment score, how sure that is, and by how much they beat each other on the same prompts.

An arm may have several models, trained alike from several seeds. Its intervals are those of a bootstrap in two levels:
seeds are drawn anew, and for each of them prompts; so a figure is as sure as another training on other prompts of the
kind would find it, not only as other drawings of the same models would.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13 (percentile intervals) and 8 (several
levels).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float, Int

ROUNDS = 4000
"""Times that prompts and seeds are drawn anew."""
Marks = Mapping[str, Float[np.ndarray, "_ prompts"]]
"""Of each task: a row for each seed of training; prompts are the same in all arms, a failed one is NaN."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    score: float
    low: float
    high: float
    n: int
    """Marks that it is the mean of, all seeds together."""
    failed: int
    """Marks that there should be besides: of pictures on which the judge failed."""


def arm_figures(marks: Mapping[str, Marks], rounds: int = ROUNDS) -> dict[str, dict[str, Any]]:
    """Returns for each arm the scores of its tasks, their mean (``mean``), and the gains of both over the first arm."""
    first = next(iter(marks.values()))
    return {
        name: {
            "seeds": len(next(iter(of_arm.values()))),
            "scores": {task: asdict(one) for task, one in scores(of_arm, rounds).items()},
            "gains": {task: asdict(one) for task, one in gains(of_arm, first, rounds).items()},
        }
        for name, of_arm in marks.items()
    }


def scores(marks: Marks, rounds: int = ROUNDS) -> dict[str, Estimate]:
    """Returns the mean of each task, and ``mean``, that of all tasks.

    Raises:
        ValueError: if the judge failed on all pictures of a task.
    """
    for task, values in marks.items():
        if np.isnan(values).all():
            raise ValueError(f"{task} must have some picture that was judged, got none")
    means = {task: float(np.nanmean(values)) for task, values in marks.items()}
    return _estimates(means, {task: _resampled(values, rounds) for task, values in marks.items()}, marks)


def gains(marks: Marks, base: Marks, rounds: int = ROUNDS) -> dict[str, Estimate]:
    """Returns by how much the marks of each task, and of all, are above those of another arm on the same prompts."""
    assert marks.keys() == base.keys()
    means = {task: float(np.nanmean(values) - np.nanmean(base[task])) for task, values in marks.items()}
    drawn = {task: _resampled(values, rounds) - _resampled(base[task], rounds) for task, values in marks.items()}
    return _estimates(means, drawn, marks)


def _estimates(means: Mapping[str, float], drawn: Mapping[str, np.ndarray], marks: Marks) -> dict[str, Estimate]:
    """Returns means with what lies between the outer fortieths of those drawn anew."""
    failed = {task: int(np.isnan(values).sum()) for task, values in marks.items()}
    there = {task: values.size - failed[task] for task, values in marks.items()}
    estimates = {
        task: Estimate(mean, *_interval(drawn[task]), there[task], failed[task]) for task, mean in means.items()
    }
    overall = np.mean([*drawn.values()], axis=0)
    mean = fmean(means.values())
    return {**estimates, "mean": Estimate(mean, *_interval(overall), sum(there.values()), sum(failed.values()))}


def _interval(drawn: Float[np.ndarray, " rounds"]) -> tuple[float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _resampled(values: Float[np.ndarray, "seeds prompts"], rounds: int) -> Float[np.ndarray, " rounds"]:
    """Returns means over seeds and prompts drawn anew. All arms of one shape draw the same prompts."""
    num_seeds, num_prompts = values.shape
    prompts = _drawn(num_prompts, num_prompts, rounds, seed=0)
    seeds = _drawn(num_seeds, num_seeds, rounds, seed=1)
    return np.nanmean(values[seeds[:, :, None], prompts[:, None, :]], axis=(1, 2))


def _drawn(number: int, size: int, rounds: int, seed: int) -> Int[np.ndarray, "rounds size"]:
    return np.random.default_rng(seed).integers(number, size=(rounds, size))
