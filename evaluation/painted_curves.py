"""Tables and plots of what is painted from codes, against the number of steps or the share of wrong codes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

Figures = Mapping[str, Any]
"""What ``PaintedScenes.figures`` returns."""
Curves = Mapping[str, Mapping[int, Figures] | Mapping[float, Figures]]
"""Figures by decoder, and by what they are drawn against."""
_COLUMNS = {"psnr_db": ("PSNR, dB", 2), "ssim": ("SSIM", 3), "perceptual": ("perceptual", 4), "frechet": ("Frechet", 1)}
"""Heading and decimal places of each figure but the judge's."""
HEADINGS = (*(heading for heading, _ in _COLUMNS.values()), "judge", "95 % interval")
_PLOTTED = {"psnr_db": "PSNR, dB", "perceptual": "perceptual distance", "frechet": "Frechet distance"}


def table(
    curves: Curves, against: str, ceiling: Figures, more: Mapping[str, Callable[[Figures], str]] | None = None
) -> Table:
    """Returns a row for each point of each curve.

    Args:
        curves: the figures.
        against: heading of the column of what they are drawn against.
        ceiling: the judge's score of the true pictures.
        more: further columns, by their headings.
    """
    title = f"{ceiling['n']} held-out scenes; the judge passes {ceiling['score']:.3f} of the true pictures"
    rows = Table(against, *HEADINGS, *(more or {}), title=title)
    for name, points in curves.items():
        rows.add_section()
        rows.add_row(name)
        for place, one in points.items():
            rows.add_row(f"{place:g}", *cells(one), *(cell(one) for cell in (more or {}).values()))
    return rows


def cells(figures: Figures) -> tuple[str, ...]:
    """Returns figures for people to read, one for each of ``HEADINGS``."""
    judge = figures["judge"]
    measured = (f"{figures[each]:.{digits}f}" for each, (_, digits) in _COLUMNS.items())
    return *measured, f"{judge['score']:.3f}", f"{judge['low']:.3f} to {judge['high']:.3f}"


def plot(curves: Curves, against: str, path: Path, *, log: bool = False) -> None:
    """Draws likeness, Frechet distance and the judge's score, a line for each decoder."""
    from matplotlib.figure import Figure  # comes with the extra "evaluation"

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2).flat, (*_PLOTTED, "judge"), strict=True):
        for decoder, points in curves.items():
            values = [one["judge"]["score"] if name == "judge" else one[name] for one in points.values()]
            axes.plot(list(points), values, marker="o", label=decoder)
        axes.set(xlabel=against, ylabel=_PLOTTED.get(name, "scenes that the judge sees"))
        places = sorted({place for points in curves.values() for place in points})
        if log:
            axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def check_files(**files: Path | None) -> None:
    """Refuses names of pictures that cannot be written.

    Raises:
        ValueError: if one is no .png file in a folder that exists.
    """
    for flag, path in files.items():
        if path is not None and (path.suffix != ".png" or not path.parent.is_dir()):
            raise ValueError(f"--{flag} must be a .png file in a folder that exists, got {path}")
