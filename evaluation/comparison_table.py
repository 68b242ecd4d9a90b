"""The table and the picture of a comparison of image tokenizers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rebus.evaluation.drawing_benchmark import DRAWING_TASKS

Result = dict[str, Any]


def language_bits(result: Result) -> float:
    """Returns the bits that the language model needs for the codes of a held-out picture."""
    return result["language_loss"] * result["num_codes"] / math.log(2)


def drawn(scores: Result) -> float:
    """Returns the mean score over the drawing tasks."""
    return sum(scores[task]["score"] for task in DRAWING_TASKS) / len(DRAWING_TASKS)


COLUMNS: dict[str, Callable[[Result], str]] = {
    "recipe": lambda result: result["recipe"],
    "codes": lambda result: f"{result['num_codes']:.0f}",
    "bits": lambda result: f"{result['bits']:.0f}",
    "PSNR, dB": lambda result: f"{result['rebuilt']['psnr_db']:.1f}",
    "SSIM": lambda result: f"{result['rebuilt']['ssim']:.3f}",
    "perceptual distance": lambda result: f"{result['rebuilt']['perceptual']:.3f}",
    "codes in use": lambda result: f"{min(result['rebuilt']['codes_in_use'].values()):.0%}",
    "perplexity": lambda result: f"{_mean(result['rebuilt']['perplexity']):.0f}",
    "Zipf": lambda result: f"{_mean({name: one['zipf_exponent'] for name, one in result['statistics'].items()}):.2f}",
    "probe": lambda result: f"{result['rebuilt']['probe_positions']['score']:.2f}",
    "painted": lambda result: f"{drawn(result['report']['rebuilt_ceiling']):.2f}",
    "bits by the language model": lambda result: f"{language_bits(result):.0f}",
    "drawn": lambda result: f"{drawn(result['report']):.2f}",
    "VQA": lambda result: f"{result['report']['vqa']['score']:.2f}",
    "encoded/s": lambda result: f"{result['rebuilt']['encoded_per_second']:.0f}",
    "decoded/s": lambda result: f"{result['rebuilt']['decoded_per_second']:.0f}",
    "minutes": lambda result: f"{sum(result['seconds'].values()) / 60:.1f}",
}


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def markdown(results: Sequence[Result]) -> str:
    """Returns a table with a row for each result, those of the fewest bits first."""
    rows = [[cell(one) for cell in COLUMNS.values()] for one in sorted(results, key=lambda result: result["bits"])]
    lines = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(results: Sequence[Result], file: Path) -> None:
    """Draws what a picture's bits, as few as the language model makes them, buy: likeness, and scenes to recognize."""
    from matplotlib.figure import Figure  # comes with the extra "evaluation"

    figure = Figure(figsize=(11, 5), layout="constrained")
    likeness, painted = figure.subplots(1, 2)
    for axes, of, label in (
        (likeness, lambda result: result["rebuilt"]["psnr_db"], "PSNR of rebuilt scenes, dB"),
        (painted, lambda result: drawn(result["report"]["rebuilt_ceiling"]), "painted scenes that the judge sees"),
    ):
        for one in results:
            place = (language_bits(one), of(one))
            axes.plot(*place, "o")
            axes.annotate(one["recipe"], place, textcoords="offset points", xytext=(4, 4), fontsize=8)
        axes.set(xlabel="bits that the language model needs for a picture", ylabel=label)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
