"""Samples as ids in memory-mapped files: what pre-tokenizing writes once and training reads as often as it likes.

A folder of shards holds ``info.json``, which says what made them, ``shard-00000.safetensors`` and so on, and, once all
are there, ``manifest.json`` with their counts. A shard is whole or absent. It holds the ids of its samples end to end,
each id that is not to be learned as its complement, and where the samples start.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Int32, Int64
from safetensors.numpy import save_file

from rebus.data.bad_data import Reason
from rebus.data.rendering import NOT_TRAINED, Rendered
from rebus.tokenizers.vocabulary import Vocabulary

INFO, MANIFEST = "info.json", "manifest.json"
_DRAFT = ".new"
_FORMAT = 2
_DTYPES = {"I32": np.int32, "I64": np.int64}


@dataclass(frozen=True, kw_only=True)
class ShardsInfo:
    """What made the shards of a folder: whoever goes on with them must be given the same."""

    image_tokenizer: str
    """Hash of the image tokenizer."""
    text_tokenizer: str
    """Hash of the text tokenizer."""
    vocabulary: dict[str, Any]
    """The one id space of both."""
    source: str
    """Where the records lay."""
    schema: str
    """Format that they were in."""
    records_per_shard: int
    """Records, good and bad ones, behind each shard but the last."""
    max_ids: int
    """Ids of the longest sample that is kept."""
    format: int = _FORMAT
    """Of the files."""

    @staticmethod
    def read(folder: Path) -> "ShardsInfo":
        """Returns what made the shards of a folder.

        Raises:
            ValueError: if no shards are there, or of another format.
        """
        path = folder / INFO
        if not path.is_file():
            raise ValueError(f"{folder} must be a folder of shards, got no {INFO} in it")
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f"{path} must be of format {_FORMAT}, got another")
        names = [field.name for field in fields(ShardsInfo)]
        if set(values) != set(names):
            raise ValueError(f"{path} must have {', '.join(names)}, got {sorted(values)}")
        return ShardsInfo(**values)

    def write(self, folder: Path) -> None:
        """Writes it into a folder."""
        _write_whole(folder / INFO, (json.dumps(asdict(self), indent=2) + "\n").encode())


@dataclass(frozen=True)
class ShardCounts:
    """What a shard holds, and what became of the records behind it."""

    samples: int
    ids: int
    bad: dict[Reason, int]
    """Records that were left out, by reason."""

    @property
    def records(self) -> int:
        """Records that were read for it."""
        return self.samples + sum(self.bad.values())


def shard_path(folder: Path, number: int) -> Path:
    """Returns where a shard is."""
    return folder / f"shard-{number:05}.safetensors"


def write_shard(path: Path, samples: Sequence[Rendered], bad: Mapping[Reason, int]) -> ShardCounts:
    """Writes a shard; a crash leaves all of it or nothing."""
    lengths = [len(sample.ids) for sample in samples]
    pairs = (pair for sample in samples for pair in zip(sample.ids, sample.targets, strict=True))
    marked = [~token if target == NOT_TRAINED else token for token, target in pairs]
    tensors = {
        "marked": np.array(marked, dtype=np.int32),
        "starts": np.array(list(accumulate(lengths, initial=0)), dtype=np.int64),
    }
    draft = draft_of(path)
    save_file(tensors, draft, metadata={"bad": json.dumps(dict(bad))})
    publish(draft, path)
    return ShardCounts(len(samples), sum(lengths), dict(bad))


def write_manifest(folder: Path, shards: Sequence[ShardCounts]) -> None:
    """Says that the shards of a folder are all there, and removes what makers left that were killed."""
    for draft in folder.glob(f"*{_DRAFT}"):
        draft.unlink(missing_ok=True)
    values = {"shards": [asdict(counts) for counts in shards]}
    _write_whole(folder / MANIFEST, (json.dumps(values, indent=2) + "\n").encode())


class Shard:
    """The samples of one file, read where they are asked for."""

    marked: Int32[np.ndarray, " ids"]
    """Ids; those that are not to be learned as their complements, which are negative."""
    starts: Int64[np.ndarray, " samples_and_end"]

    def __init__(self, path: Path):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        bad = json.loads(header.pop("__metadata__")["bad"])
        # Torch maps a file without keeping it open, as numpy does: a process may have but a thousand open.
        mapped = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8).numpy()
        for name, entry in header.items():
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            setattr(self, name, mapped[start:stop].view(_DTYPES[entry["dtype"]]))
        self.counts = ShardCounts(len(self.starts) - 1, len(self.marked), bad)


class Shards:
    """All samples of a folder, by number."""

    def __init__(self, folder: Path):
        """Opens finished shards.

        Raises:
            ValueError: if there are none, they are not finished, or some are missing or not what the manifest says.
        """
        self.folder, self.info = folder, ShardsInfo.read(folder)
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"{folder} must hold finished shards, got no {MANIFEST}: pre-tokenize again to finish them"
            )
        expected = [ShardCounts(**one) for one in json.loads((folder / MANIFEST).read_text())["shards"]]
        self._shards = []
        for number, counts in enumerate(expected):
            path = shard_path(folder, number)
            if not path.is_file():
                raise ValueError(f"{folder} must hold the {len(expected)} shards of its manifest, got no {path.name}")
            self._shards.append(Shard(path))
            if self._shards[-1].counts != counts:
                raise ValueError(f"{path} must hold what the manifest says, {counts}, got {self._shards[-1].counts}")
        self._stops = np.cumsum([counts.samples for counts in expected])
        self.lengths = np.concatenate([np.diff(shard.starts).astype(np.int32) for shard in self._shards])
        """Ids of each sample."""
        self._starts = np.concatenate([shard.starts[:-1] for shard in self._shards])
        self.vocabulary = Vocabulary.from_dict(self.info.vocabulary)
        self.num_ids = sum(counts.ids for counts in expected)

    def __len__(self) -> int:
        return len(self.lengths)

    def marked(self, samples: Int64[np.ndarray, " n"]) -> list[Int32[np.ndarray, " ids"]]:
        """Returns the ids of samples by their numbers; those that are not to be learned as their complements."""
        shards = np.searchsorted(self._stops, samples, side="right").tolist()
        starts = self._starts[samples]
        stops = (starts + self.lengths[samples]).tolist()
        spans = zip(shards, starts.tolist(), stops, strict=True)
        return [self._shards[number].marked[start:stop] for number, start, stop in spans]

    def check_made_by(self, *, image_tokenizer: str, text_tokenizer: str) -> None:
        """Raises unless both tokenizers are those that made the shards.

        Raises:
            ValueError: if one has another hash.
        """
        for name, own, other in (
            ("image tokenizer", self.info.image_tokenizer, image_tokenizer),
            ("text tokenizer", self.info.text_tokenizer, text_tokenizer),
        ):
            if own != other:
                raise ValueError(f"{self.folder} must be made by {name} {other}, got shards of {own}")


def _write_whole(path: Path, data: bytes) -> None:
    draft = draft_of(path)
    draft.write_bytes(data)
    publish(draft, path)


def draft_of(path: Path) -> Path:
    """Returns where to write what ``publish`` makes a file of: a place that no other maker of the file writes to.

    A cluster may make a file twice at a time, when it takes a machine for lost that is not.
    """
    return path.with_name(f"{path.name}.{uuid4().hex}{_DRAFT}")


def publish(draft: Path, path: Path) -> None:
    """Renames a draft once it is safely on the disk."""
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)
