"""The scores of a report: means of marks with their intervals, and how far two judges agree."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from rebus.evaluation.agreement import agreement, kendall
from rebus.evaluation.benchmark import SECOND_JUDGE, Marks, Outcome
from rebus.evaluation.intervals import bootstrap, is_right_or_wrong, wilson

Figures = dict[str, Any]
"""By name; those of a group lie in a dictionary of their own."""
AGREEMENT = "judge_agreement"
ALL_SCORES = "all_scores"
"""The entry that tells of the order of the scores rather than of the drawings of one."""


def score_of(marks: Marks, generator: torch.Generator) -> Figures:
    """Returns a score with its 95 % interval and the numbers of marked and failed items.

    Marks of 0 and 1, and shares that are all the same, have Wilson's interval: resampling 80 right answers of 80 gives
    nothing but right answers, an interval without width, and close to 0 and 1 it is too narrow. All others have that
    of the bootstrap.
    """
    values = list(marks.each.values())
    if not values:
        nothing = dict.fromkeys(("score", "low", "high", "interval"))
        return nothing | {"n": 0, "failed": len(marks.failed), "kind": marks.kind}
    resampled = marks.kind != "share" or not (is_right_or_wrong(values) or len(set(values)) == 1)
    found = bootstrap(values, generator) if resampled else wilson(values)
    interval = "bootstrap" if resampled else "wilson"
    return {**asdict(found), "interval": interval, "failed": len(marks.failed), "kind": marks.kind}


def figures(outcomes: Mapping[str, Outcome], seed: int) -> Figures:
    """Returns all scores of benchmarks, by their names; scores without any items are left out.

    The seed is that of the resampling, which is the same for every score: none depends on which others there are.
    """
    marks = {name: one for outcome in outcomes.values() for name, one in outcome.marks.items()}
    found: Figures = {}
    for name, one in marks.items():
        if one.each or one.failed:
            _put(found, name, score_of(one, torch.Generator().manual_seed(seed)))
    for outcome in outcomes.values():
        for name, value in outcome.others.items():
            _put(found, name, value)
    found["others"] = [name for outcome in outcomes.values() for name in outcome.others]
    found["failures"] = {name: dict(Counter(one.failed.values())) for name, one in marks.items() if one.failed}
    judged = {name: (marks[name], marks[f"{SECOND_JUDGE}/{name}"]) for name in found.get(SECOND_JUDGE, ())}
    if judged:
        found[AGREEMENT] = {name: agreement(one.each, other.each) for name, (one, other) in judged.items()}
        ranked = [[found_in(found, f"{group}{name}")["score"] for name in judged] for group in ("", f"{SECOND_JUDGE}/")]
        if None not in (*ranked[0], *ranked[1]):
            found[AGREEMENT][ALL_SCORES] = {"kendall": kendall(*ranked), "n": len(judged)}
    return found


def found_in(found: Figures, name: str) -> Any:
    """Returns a figure by its name."""
    group, _, rest = name.partition("/")
    return found[group][rest] if rest else found[name]


def scores_in(found: Figures) -> Iterator[tuple[str, Figures]]:
    """Yields the name of each score, with its group, and what it is."""
    for name, value in found.items():
        if _is_score(value):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}/{rest}", one) for rest, one in value.items() if _is_score(one))


def _is_score(value: Any) -> bool:
    return isinstance(value, dict) and "score" in value


def _put(found: Figures, name: str, value: Any) -> None:
    group, _, rest = name.partition("/")
    assert not _is_score(found.get(group)), f"{group} is a score, and so no group"
    if rest:
        found.setdefault(group, {})[rest] = value
    else:
        found[name] = value
