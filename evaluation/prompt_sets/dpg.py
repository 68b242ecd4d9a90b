"""DPG-Bench's prompts: long descriptions, whose scorer asks a model of its own about one grid of pictures for each.

Source: Hu et al., "ELLA: Equip Diffusion Models with LLM for Enhanced Semantic Alignment",
https://arxiv.org/abs/2403.05135, sec. 4; its files and folders at https://github.com/TencentQQGYLab/ELLA (dpg_bench).
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rebus.evaluation.prompt_sets.contract import PlannedPicture
from rebus.evaluation.prompt_sets.lines import MOST_LINES, numbered_lines, refuse_empty

_ITEM = re.compile(r"[A-Za-z0-9_-]+")
_GRIDS = (1, 4)


@dataclass(frozen=True)
class DpgPrompt:
    """One prompt."""

    id: str
    text: str

    @property
    def groups(self) -> Sequence[str]:
        """All are of one kind."""
        return ("dpg_bench",)

    def planned(self, num_samples: int) -> list[PlannedPicture]:
        """Returns the one picture of the prompt: 1 sample, or 4 of them as a grid of 2 x 2.

        Raises:
            ValueError: if there shall be any other number of samples.
        """
        if num_samples not in _GRIDS:
            raise ValueError(f"samples must be 1 or 4 for DPG-Bench, got {num_samples}")
        return [PlannedPicture(self.id, 0, self.text, f"{self.id}.png", tuple(range(num_samples)))]


def read_dpg(path: Path) -> list[DpgPrompt]:
    """Returns the prompts of a folder of text files, or of ``dpg_bench.csv``, by their item ids.

    Raises:
        ValueError: if it is neither; the message names the file and, of a table, the line.
    """
    texts: dict[str, str] = {}
    for place, identifier, text in _files(path) if path.is_dir() else _rows(path):
        if not _ITEM.fullmatch(identifier):
            raise ValueError(f"{place}: item_id must have letters, digits, - and _ alone, got {identifier!r}")
        if not text:
            raise ValueError(f"{place}: text must not be empty")
        if texts.setdefault(identifier, text) != text:
            raise ValueError(f"{place}: text must be the same for all lines of item {identifier}, got another")
    prompts = [DpgPrompt(identifier, text) for identifier, text in texts.items()]
    refuse_empty(prompts, path)
    return prompts


def _files(folder: Path) -> Iterator[tuple[str, str, str]]:
    for number, path in enumerate(sorted(folder.glob("*.txt"))):
        if number == MOST_LINES:
            raise ValueError(f"{folder} must hold at most {MOST_LINES} prompts, got more")
        yield str(path), path.stem, " ".join(line.strip() for _, line in numbered_lines(path))


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields the item and the text of each row: there is a row for each question, so an item has many."""
    rows = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)
    try:
        header = next(rows, [])
        if not {"item_id", "text"} <= set(header):
            raise ValueError(f"{path}:1: the first line must name item_id and text, got {', '.join(header)[:80]!r}")
        columns = header.index("item_id"), header.index("text")
        for row in rows:
            place = f"{path}:{rows.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{place}: a row must have {len(header)} cells, got {len(row)}")
            yield place, row[columns[0]].strip(), row[columns[1]].strip()
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: a row must be one of a CSV table, got {error}") from error
