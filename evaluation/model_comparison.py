"""Two models on the same items: by how much the second is better, and whether that may be chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch

from rebus.evaluation.benchmark import JUDGE_CEILING, SECOND_JUDGE, SECOND_JUDGE_CEILING, Kind, Marks
from rebus.evaluation.intervals import bootstrap, is_right_or_wrong
from rebus.evaluation.paired_tests import mcnemar, sign_flip

_OF_JUDGES = (JUDGE_CEILING, SECOND_JUDGE_CEILING)
"""Groups of marks that true pictures got, whatever the model."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of two models on the items that both have marks for."""

    first: float
    second: float
    difference: float
    """The second less the first."""
    low: float
    """Lower end of the 95 % interval of the difference, by resampling items."""
    high: float
    p: float
    """How likely models that are equally good differ as much; a small one of many such tests may be chance."""
    test: str
    """``mcnemar`` where all marks are 0 or 1, else ``sign_flip``."""
    n: int
    """Items that both have marks for."""
    only_first: int
    """Items on which the first has the better mark."""
    only_second: int
    kind: Kind


def compare(first: Marks, second: Marks, seed: int) -> Difference:
    """Returns how the marks of the second differ from those of the first.

    Raises:
        ValueError: if no item has marks in both.
    """
    items = [item for item in first.each if item in second.each]
    if not items:
        raise ValueError("marks must have an item in common, got none")
    one, other = ([marks.each[item] for item in items] for marks in (first, second))
    changes = [mate - mark for mark, mate in zip(one, other, strict=True)]
    better = [change if first.kind != "lower" else -change for change in changes]
    only_first, only_second = sum(change < 0 for change in better), sum(change > 0 for change in better)
    exact = is_right_or_wrong(one + other)
    p = mcnemar(only_first, only_second) if exact else sign_flip(changes, torch.Generator().manual_seed(seed))
    found = bootstrap(changes, torch.Generator().manual_seed(seed))
    return Difference(
        first=fmean(one),
        second=fmean(other),
        difference=found.score,
        low=found.low,
        high=found.high,
        p=p,
        test="mcnemar" if exact else "sign_flip",
        n=len(items),
        only_first=only_first,
        only_second=only_second,
        kind=first.kind,
    )


def differences(first: Mapping[str, Marks], second: Mapping[str, Marks], seed: int) -> dict[str, Difference]:
    """Returns the difference of each score of two models that both have marks for, but not of the judges' own scores.

    Args:
        first: marks by score.
        second: those of the other model.
        seed: of the random draws, the same for every score.
    """
    shared = [name for name in first if name in second and name.partition("/")[0] not in _OF_JUDGES]
    return {
        name: compare(first[name], second[name], seed)
        for name in shared
        if first[name].each.keys() & second[name].each.keys()
    }


def judges_alike(found: Mapping[str, Difference]) -> dict[str, int] | None:
    """Returns of how many scores both judges prefer the same model or neither, and of how many there are two judges.

    Returns:
        None where there was no second judge.
    """
    pairs = [(one, found[f"{SECOND_JUDGE}/{name}"]) for name, one in found.items() if f"{SECOND_JUDGE}/{name}" in found]
    alike = sum(_order(one.difference) == _order(other.difference) for one, other in pairs)
    return {"alike": alike, "n": len(pairs)} if pairs else None


def markdown(found: Mapping[str, Difference]) -> str:
    """Returns a row for each score, and whether the judges prefer the same model."""
    headings = ["score", "first", "second", "second - first", "95 % interval", "p", "test", "of"]
    table = [[*headings, "first better", "second better"], ["---", *["---:"] * 9]]
    for name, one in found.items():
        interval = f"{one.low:+.3f} to {one.high:+.3f}"
        means = [f"{one.first:.3f}", f"{one.second:.3f}", f"{one.difference:+.3f}", interval, f"{one.p:.2g}"]
        table.append([name, *means, one.test, str(one.n), str(one.only_first), str(one.only_second)])
    text = "".join(f"| {' | '.join(line)} |\n" for line in table)
    text += "\nEach p is of a test by itself: one in twenty is below 0.05 where nothing differs.\n"
    if alike := judges_alike(found):
        text += f"\nBoth judges prefer the same model in {alike['alike']} of {alike['n']} scores.\n"
    return text


def _order(difference: float) -> int:
    return (difference > 0) - (difference < 0)
