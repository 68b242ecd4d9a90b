"""Every benchmark that the report can run, and the choice among them."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from rebus.evaluation.answer_benchmark import AnswerBenchmark
from rebus.evaluation.benchmark import Benchmark, FileBenchmark
from rebus.evaluation.caption_benchmark import CaptionBenchmark
from rebus.evaluation.drawing_benchmark import DrawingBenchmark
from rebus.evaluation.geneval_benchmark import GenEvalBenchmark
from rebus.evaluation.in_context_benchmark import InContextBenchmark
from rebus.evaluation.presence_benchmark import PresenceBenchmark
from rebus.evaluation.word_preservation import WordBenchmark
from rebus.evaluation.words_benchmark import WordsBenchmark

BENCHMARKS: tuple[Benchmark, ...] = (
    DrawingBenchmark(),
    AnswerBenchmark(),
    CaptionBenchmark(),
    PresenceBenchmark(),
    InContextBenchmark(),
    WordBenchmark(),
    GenEvalBenchmark(),
    GenEvalBenchmark(wording="reworded"),
    WordsBenchmark(name="longtext", number=20, num_samples=4),
    WordsBenchmark(name="parti", number=100, num_samples=1),
)
"""At their full sizes, in the order of the report."""


def chosen_benchmarks(
    names: Sequence[str] | None, limit: int | None, paths: Mapping[str, Path], among: Sequence[Benchmark] = BENCHMARKS
) -> list[Benchmark]:
    """Returns benchmarks that have all they need.

    Args:
        names: which; all that lack no path by default.
        limit: most items of each task.
        paths: by the names of benchmarks, where their files are.
        among: all there are.

    Raises:
        ValueError: if there is no such benchmark, it takes no path or lacks one, or the limit is below 1.
    """
    known = {one.name: one for one in among}
    for what, given in (("benchmarks", names or ()), ("paths", paths)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{what} must be of {', '.join(known)}, got {', '.join(unknown)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    for name, path in paths.items():
        if not isinstance(known[name], FileBenchmark):
            raise ValueError(f"paths must be of benchmarks that take one, got {name}")
        known[name] = _changed(known[name], path=path)
    chosen = [known[name] for name in dict.fromkeys(names)] if names else [*filter(_is_ready, known.values())]
    for one in chosen:
        if not _is_ready(one):
            raise ValueError(f"{one.name} must have the path of its files, got none: --path {one.name}=PATH")
        one.check()
    return [one if limit is None else _changed(one, number=min(limit, one.number)) for one in chosen]


def _is_ready(benchmark: Benchmark) -> bool:
    return not isinstance(benchmark, FileBenchmark) or benchmark.path is not None


def _changed(benchmark: Benchmark, **changes: Any) -> Benchmark:
    assert is_dataclass(benchmark) and not isinstance(benchmark, type)
    return replace(benchmark, **changes)
