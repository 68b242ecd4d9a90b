"""Records of files in the formats of the field, one after the other, each with its number.

A record is what a line of JSON is: a dict. Pictures in it are paths, URLs, or the bytes of picture files. Nothing is
ever unpickled: a format that needs it is not read.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from rebus.data.bad_data import BadRecord, Position

Record = dict[str, Any]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_TEXT_SUFFIXES = (".txt", ".caption")
MAX_MEMBER_BYTES = 2**28
"""Of the largest file within a tar archive that is read."""


@runtime_checkable
class Records(Protocol):
    """Where records come from."""

    def read(self, start: int = 0) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Yields the records from number ``start`` on, always in the same order; bad ones as what is wrong."""
        ...


@dataclass(frozen=True)
class JsonRecords:
    """A ``.jsonl`` file with an object a line, or a ``.json`` file that is one list of objects."""

    path: Path

    def read(self, start: int = 0) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Yields the records; lines that hold nothing are not counted."""
        _check_file(self.path, ".jsonl", ".json")
        if self.path.suffix == ".json":
            yield from self._of_list(start)
            return
        with self.path.open("rb") as lines:
            for index, line in enumerate(line for line in lines if line.strip()):
                if index >= start:
                    yield _parsed(line), Position(str(self.path), index)

    def _of_list(self, start: int) -> Iterator[tuple[Record | BadRecord, Position]]:
        try:
            values = json.loads(self.path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{self.path} must be a list of JSON objects, got no JSON ({error})") from error
        if not isinstance(values, list):
            raise ValueError(f"{self.path} must be a list of JSON objects, got {type(values).__name__}")
        for index, value in enumerate(values[start:], start):
            yield _as_record(value), Position(str(self.path), index)


@dataclass(frozen=True)
class ParquetRecords:
    """A Parquet file; columns of pictures hold bytes, or structs of bytes and path as Hugging Face writes them."""

    path: Path
    batch_size: int = 64
    """Rows that are in memory at once."""

    def read(self, start: int = 0) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Yields the rows; whole row groups before ``start`` are not read."""
        import pyarrow.parquet  # of the extra ``data``

        _check_file(self.path, ".parquet")
        with pyarrow.parquet.ParquetFile(self.path) as file:
            index = 0
            for group in range(file.metadata.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if index + num_rows > start:
                    rows = (row for batch in self._batches(file, group) for row in batch.to_pylist())
                    for number, row in enumerate(rows, index):
                        if number >= start:
                            yield row, Position(str(self.path), number)
                index += num_rows

    def _batches(self, file: Any, group: int) -> Iterator[Any]:
        return file.iter_batches(batch_size=self.batch_size, row_groups=[group])


@dataclass(frozen=True)
class TarRecords:
    """A WebDataset archive: files whose paths are alike up to the first dot of their name are one record.

    ``.json`` gives the record, ``.txt`` its ``text``, and pictures are the ``image``, or under their file name in
    ``files`` where a record has several. Other files, among them all that would have to be unpickled, are left out.
    """

    path: Path

    def read(self, start: int = 0) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Yields the records; of those before ``start`` only the headers are read."""
        _check_file(self.path, ".tar")
        try:
            with tarfile.open(self.path, "r:") as archive:
                members = (member for member in archive if member.isfile())
                for index, (key, group) in enumerate(groupby(members, key=_key)):
                    if index >= start:
                        yield _tar_record(key, archive, list(group)), Position(str(self.path), index)
        except tarfile.TarError as error:
            raise ValueError(f"{self.path} must be a whole tar archive, got a damaged one ({error})") from error


@dataclass(frozen=True)
class FolderRecords:
    """Pictures in a folder and those below it, each with a text of the same name: ``cat.jpg`` and ``cat.txt``."""

    path: Path

    def read(self, start: int = 0) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Yields ``image`` and ``text`` of each picture, in the order of their names."""
        if not self.path.is_dir():
            raise ValueError(f"{self.path} must be a folder of pictures, got {_what(self.path)}")
        found = sorted(path for path in self.path.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        for index, picture in enumerate(found[start:], start):
            yield self._record(picture), Position(str(picture), index)

    def _record(self, picture: Path) -> Record | BadRecord:
        texts = [text for suffix in _TEXT_SUFFIXES if (text := picture.with_suffix(suffix)).is_file()]
        if len(texts) != 1:
            wanted = " or ".join(picture.stem + suffix for suffix in _TEXT_SUFFIXES)
            return BadRecord("missing", f"a picture must have one text, {wanted}, got {len(texts)}")
        text = _decoded(texts[0].read_bytes())
        return text if isinstance(text, BadRecord) else {"image": str(picture.relative_to(self.path)), "text": text}


def _check_file(path: Path, *suffixes: str) -> None:
    if path.suffix not in suffixes or not path.is_file():
        raise ValueError(f"{path} must be a file {' or '.join(suffixes)}, got {_what(path)}")


def _what(path: Path) -> str:
    return "a folder" if path.is_dir() else f"{path.suffix or 'no suffix'}" if path.exists() else "no such file"


def _parsed(data: bytes) -> Record | BadRecord:
    try:
        return _as_record(json.loads(data))
    except (ValueError, RecursionError) as error:
        return BadRecord("not_json", f"a record must be a JSON object, got none ({error})")


def _as_record(value: object) -> Record | BadRecord:
    if not isinstance(value, dict):
        return BadRecord("not_json", f"a record must be a JSON object, got {type(value).__name__}")
    return value


def _decoded(data: bytes) -> str | BadRecord:
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return BadRecord("schema", f"a text must be UTF-8, got something else ({error})")


def _key(member: tarfile.TarInfo) -> str:
    path = PurePosixPath(member.name)
    return str(path.with_name(path.name.split(".", 1)[0]))


def _tar_record(key: str, archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Record | BadRecord:
    record: Record = {"__key__": key}
    pictures: dict[str, bytes] = {}
    for member in members:
        name = PurePosixPath(member.name).name
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in (*PICTURE_SUFFIXES, ".json", ".txt"):
            continue
        if member.size > MAX_MEMBER_BYTES:
            return BadRecord("too_large", f"{name} must have at most {MAX_MEMBER_BYTES:,} bytes, got {member.size:,}")
        file = archive.extractfile(member)
        assert file is not None  # only plain files are here
        data = file.read()
        if suffix in PICTURE_SUFFIXES:
            pictures[name] = data
            continue
        content = _parsed(data) if suffix == ".json" else _decoded(data)
        if isinstance(content, BadRecord):
            return content
        record |= content if isinstance(content, dict) else {"text": content}
    if len(pictures) == 1:
        record.setdefault("image", *pictures.values())
    return record | {"files": pictures}
