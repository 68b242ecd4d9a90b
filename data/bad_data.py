"""What becomes of bad records: skipped, counted by reason, written to a quarantine file, and the end of a run if many.

Only ``BadRecord`` is handled so: any other error is one of the program, and stops it at once.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO, get_args

Reason = Literal[
    "not_json",  # no JSON object
    "schema",  # not what the format asks for
    "empty_text",
    "num_pictures",  # not as many pictures as places for them
    "missing",  # no such file, or not within the folder of pictures
    "broken_picture",
    "too_large",  # more bytes or pixels than are read
    "too_long",  # more ids than are kept
    "remote",  # a URL that is not allowed, or could not be fetched
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class BadRecord(ValueError):
    """A record that nothing can be learned from, and why."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason: Reason = reason


class TooManyBadRecords(RuntimeError):
    """The share of bad records passed its limit: the data is not what it was said to be."""


@dataclass(frozen=True)
class Position:
    """Where in a source a record is."""

    file: str
    """Path or name of what holds the record."""
    index: int
    """Number of the record within it, from 0."""


@dataclass(frozen=True, kw_only=True)
class BadDataConfig:
    """How much bad data is borne."""

    quarantine: Path | None = None
    """JSONL file to which each bad record's source, index, reason and message are added; none by default."""
    max_rate: float = 0.01
    """Share of bad records, in [0, 1], beyond which the run stops."""
    min_records: int = 1_000
    """Records before the share is looked at: few say little about a rate."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_rate <= 1:
            raise ValueError(f"max_rate must be in [0, 1], got {self.max_rate}")
        if self.min_records < 1:
            raise ValueError(f"min_records must be at least 1, got {self.min_records}")

    def build(self) -> "BadDataLog":
        """Returns a log that has seen nothing yet."""
        return BadDataLog(self)


class BadDataLog:
    """Counts records, good ones and bad ones by reason, and keeps the bad ones' places."""

    def __init__(self, config: BadDataConfig):
        self.config = config
        self.num_good = 0
        self.bad: Counter[Reason] = Counter()
        self._file: TextIO | None = None

    @property
    def num_records(self) -> int:
        """All records seen."""
        return self.num_good + self.bad.total()

    def good(self) -> None:
        """Counts a record that could be read."""
        self.num_good += 1

    def skip(self, error: BadRecord, position: Position) -> None:
        """Counts a bad record and writes it down.

        Raises:
            TooManyBadRecords: if the share of bad records is over its limit now.
        """
        self.bad[error.reason] += 1
        if self.config.quarantine is not None:
            self._write(self.config.quarantine, error, position)
        self._check(f"the last one: {position.file}, record {position.index}: {error}")

    def add(self, num_good: int, bad: Mapping[Reason, int]) -> None:
        """Counts records that others have read.

        Raises:
            TooManyBadRecords: as ``skip``.
        """
        self.num_good += num_good
        self.bad.update(bad)
        self._check("see the files beside the shards")

    def _check(self, hint: str) -> None:
        if self.num_records >= self.config.min_records and self.bad.total() > self.config.max_rate * self.num_records:
            raise TooManyBadRecords(
                f"bad records must be at most {self.config.max_rate:.1%} of all, got {self}; {hint}"
            )

    def close(self) -> None:
        """Closes the quarantine file, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, path: Path, error: BadRecord, position: Position) -> None:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        line = {"source": position.file, "index": position.index, "reason": error.reason, "message": str(error)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def __str__(self) -> str:
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.bad.most_common())
        return f"{self.bad.total()} of {self.num_records} ({reasons or 'none'})"
