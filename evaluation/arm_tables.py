"""The scores of the arms of an experiment as a table and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
"""What ``compare`` of ``trials.py`` returns."""
_PER_PICTURE = "_per_picture"
_LEGEND_COLUMNS = 4


def markdown(figures: Figures) -> str:
    """Returns a table for each judge: a row for each arm, its scores with their intervals, and what it costs."""
    return "\n".join(f"By the {judge}:\n\n{_table(arms, figures)}" for judge, arms in figures["judges"].items())


def plot(figures: Figures, file: Path) -> None:
    """Draws the scores of each task with their intervals, a colour for each arm, a panel for each judge."""
    from matplotlib import colormaps  # comes with the extra "evaluation"
    from matplotlib.figure import Figure

    judges = figures["judges"]
    figure, colours = Figure(figsize=(11, 4.5 * len(judges)), layout="constrained"), colormaps["tab20"]
    for axes, (judge, arms) in zip(figure.subplots(len(judges), squeeze=False)[:, 0], judges.items(), strict=True):
        width = 0.8 / len(arms)
        for index, (name, arm) in enumerate(arms.items()):
            values = [arm["scores"][task] for task in arm["scores"]]
            places = [place + (index - (len(arms) - 1) / 2) * width for place in range(len(values))]
            heights = [one["score"] for one in values]
            reach = [[one["score"] - one["low"] for one in values], [one["high"] - one["score"] for one in values]]
            axes.bar(
                places,
                heights,
                width * 0.9,
                yerr=reach,
                label=name,
                color=colours(index % colours.N),
                error_kw={"lw": 1},
            )
        tasks = list(next(iter(arms.values()))["scores"])
        axes.set_xticks(range(len(tasks)), [task.replace("_", " ") for task in tasks])
        axes.set(ylabel=f"judged right by the {judge}", ylim=(0, 1.05))
        axes.grid(axis="y", alpha=0.3)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), _LEGEND_COLUMNS), fontsize=8)
    figure.savefig(file, dpi=120)


def _table(arms: Figures, figures: Figures) -> str:
    tasks = list(next(iter(arms.values()))["scores"])
    costs = [name.removesuffix(_PER_PICTURE) for name in figures if name.endswith(_PER_PICTURE)]
    units = ["s/picture" if name == "seconds" else f"{name}/picture" for name in costs]
    head = ["arm", *(task.replace("_", " ") for task in tasks), "gain", "seeds", *units]
    rows = [
        [
            name,
            *(_told(arm["scores"][task], ".2f") for task in tasks),
            _told(arm["gains"]["mean"], "+.2f"),
            str(arm["seeds"]),
            *(format(figures[f"{cost}{_PER_PICTURE}"][name], ".2f" if cost == "seconds" else ".0f") for cost in costs),
        ]
        for name, arm in arms.items()
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _told(estimate: Mapping[str, float], form: str) -> str:
    score, low, high = (format(estimate[name], form) for name in ("score", "low", "high"))
    return f"{score} ({low} to {high})"
