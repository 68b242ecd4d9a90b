"""Records that the Hugging Face library ``datasets`` reads: of the hub, or of folders that it has written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.data.bad_data import BadRecord, Position
from rebus.data.records import Record


@dataclass(frozen=True)
class HubRecords:
    """A split of a dataset. No code that comes with a dataset is run."""

    name: str
    """OWNER/NAME on the hub, a folder with files of data, or one that ``save_to_disk`` wrote."""
    subset: str | None = None
    """Part of a dataset that has several, also called its configuration."""
    split: str = "train"
    """Such as ``train`` or ``test``."""
    streaming: bool = False
    """Whether rows are read as they come instead of being downloaded first."""

    def read(self, start: int = 0) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Yields the rows, pictures as their undecoded files.

        Raises:
            ValueError: if ``datasets`` is not installed, or finds no such dataset, subset or split.
        """
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ValueError("reading hf:... must have datasets: pip install 'rebus-lm[data]'") from error
        try:
            rows = self._undecoded(datasets)
        except (ValueError, OSError, RuntimeError) as error:
            raise ValueError(f"hf:{self.name} must be a dataset that can be read, got none: {error}") from error
        for index, row in enumerate(rows.skip(start), start):
            yield dict(row), Position(f"{self.name}, {self.split}", index)

    def _undecoded(self, datasets: Any) -> Any:
        if any(Path(self.name, file).is_file() for file in ("state.json", "dataset_dict.json")):
            rows = self._saved(datasets.load_from_disk(self.name))
        else:
            rows = datasets.load_dataset(self.name, self.subset, split=self.split, streaming=self.streaming)
            if self.streaming:
                return rows.decode(False)
        for column in [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]:
            rows = rows.cast_column(column, datasets.Image(decode=False))
        return rows

    def _saved(self, saved: Any) -> Any:
        """Returns the split of what ``save_to_disk`` wrote: a dict of splits, or one that may not know its name."""
        if self.subset is not None or self.streaming:
            raise ValueError("what save_to_disk wrote must be read without subset and streaming")
        splits = saved if isinstance(saved, dict) else {str(saved.split or self.split): saved}
        if self.split not in splits:
            raise ValueError(f"split must be one of {', '.join(splits)}, got {self.split}")
        return splits[self.split]
