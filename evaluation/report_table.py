"""The table and the plot of a report."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rebus.evaluation.benchmark import JUDGE_CEILING, REBUILT_CEILING, SECOND_JUDGE, SECOND_JUDGE_CEILING
from rebus.evaluation.figures import AGREEMENT, ALL_SCORES, Figures, found_in, scores_in

_BESIDE = {
    JUDGE_CEILING: "true pictures",
    REBUILT_CEILING: "rebuilt",
    SECOND_JUDGE: "second judge",
    SECOND_JUDGE_CEILING: "its true pictures",
}
"""Groups that are columns, and their headings."""


def rows(found: Figures) -> list[list[str]]:
    """Returns the headings, and a row for each score; what a group says of the score of another is in its row."""
    beside = {group: heading for group, heading in _BESIDE.items() if group in found}
    agreed: Mapping[str, Any] | None = found.get(AGREEMENT)
    headings = ["score", "mean", "95 % interval", "of", "failed", *beside.values()]
    lines = [[*headings, "same by both judges"] if agreed else headings]
    for name, one in scores_in(found):
        if _group(name) not in _BESIDE:
            interval = f"{one['low']:.3f} to {one['high']:.3f}" if one["n"] else ""
            line = [name, _mean(one), interval, str(one["n"]), str(one["failed"])]
            line += [_mean(found[group].get(name)) for group in beside]
            lines.append([*line, _same(agreed.get(name))] if agreed else line)
    return lines


def markdown(found: Figures) -> str:
    """Returns what the report was made with, the table, further figures, how the judges agree, and what failed."""
    headings, *lines = rows(found)
    table = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    text = f"`{found['model']}`, hash {found['model_hash']}, seed {found['seed']}, {found['seconds']:.0f} s\n\n"
    text += "".join(f"| {' | '.join(line)} |\n" for line in table)
    for name in found["others"]:
        text += f"\n{name}: {found_in(found, name):.4g}\n"
    ranked = found.get(AGREEMENT, {}).get(ALL_SCORES, {})
    if ranked.get("kendall") is not None:
        text += f"\nOrder of the {ranked['n']} scores by both judges: Kendall's tau {ranked['kendall']:.2f}.\n"
    if failed := failures(found):
        text += "\nFailed, and no part of a score:\n\n" + "".join(f"- {line}\n" for line in failed)
    return text


def failures(found: Figures) -> list[str]:
    """Returns a line for each score and reason for which items could not be marked, with their number."""
    reasons = ((name, why, number) for name, all_of in found["failures"].items() for why, number in all_of.items())
    return [f"{name}: {' '.join(why.split())} ({number})" for name, why, number in reasons]


def plot(found: Figures, path: Path) -> None:
    """Draws the scores with their intervals and what stands beside them; those that are no shares in a second panel."""
    from matplotlib.figure import Figure  # comes with the extra "evaluation"

    named = {name: one for name, one in scores_in(found) if one["n"] and _group(name) not in _BESIDE}
    shares = [name for name, one in named.items() if one["kind"] == "share"]
    panels = [panel for panel in (shares, [name for name in named if name not in shares]) if panel]
    heights = [len(panel) + 1 for panel in panels]
    figure = Figure(figsize=(8, 1 + 0.3 * sum(heights)), layout="constrained")
    for index, names in enumerate(panels):
        axes = figure.add_subplot(figure.add_gridspec(len(panels), 1, height_ratios=heights)[index])
        scores = [named[name]["score"] for name in names]
        below, above = ([abs(named[name][end] - named[name]["score"]) for name in names] for end in ("low", "high"))
        axes.errorbar(scores, names, xerr=(below, above), fmt="o", capsize=3)
        for marker, (group, heading) in zip("|+x2", _BESIDE.items(), strict=True):
            beside = {name: one["score"] for name, one in found.get(group, {}).items() if name in names and one["n"]}
            if beside:
                axes.plot(list(beside.values()), list(beside), marker, label=heading)
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
        axes.set_xlabel("mean of marks, 95 % interval")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.savefig(path, dpi=120)


def check_plots() -> None:
    """Looks whether plots can be drawn.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("plots must have matplotlib installed: pip install 'rebus-lm[evaluation]'")


def _group(name: str) -> str:
    return name.partition("/")[0]


def _mean(one: Figures | None) -> str:
    return f"{one['score']:.3f}" if one and one["n"] else ""


def _same(one: Figures | None) -> str:
    return f"{one['same']:.3f}" if one and one["n"] else ""
