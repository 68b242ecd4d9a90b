"""Samples from what others have collected: records, read as one of the field's formats, with bad ones skipped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebus.data.bad_data import BadDataLog, BadRecord, Position
from rebus.data.hub_records import HubRecords
from rebus.data.picture_links import PictureLinks
from rebus.data.records import FolderRecords, JsonRecords, ParquetRecords, Record, TarRecords
from rebus.data.samples import Picture, Sample
from rebus.data.schemas import SCHEMAS

SchemaName = Literal["captions", "text_to_image", "edits", "llava", "swift", "openai", "obelics", "omnicorpus", "mmc4"]
AnyRecords = JsonRecords | ParquetRecords | TarRecords | FolderRecords | HubRecords


@dataclass(frozen=True, kw_only=True)
class Source:
    """Samples of one collection, always in the same order."""

    records: AnyRecords
    """Where they lie."""
    schema: SchemaName
    """The format that the records are in."""
    links: PictureLinks
    """Opens the pictures that records name."""

    def samples(self, bad_data: BadDataLog, start: int = 0) -> Iterator[tuple[Sample, Position]]:
        """Yields each sample and where it came from, from record number ``start`` on; bad ones are skipped.

        Raises:
            TooManyBadRecords: if the share of bad records passes its limit.
            ValueError: if there is no such collection, or its file is damaged as a whole.
        """
        for record, position in self.records.read(start):
            try:
                sample = self.sample(record)
            except BadRecord as error:
                bad_data.skip(error, position)
                continue
            bad_data.good()
            yield sample, position

    def sample(self, record: Record | BadRecord) -> Sample:
        """Returns what a record says.

        Raises:
            BadRecord: if nothing can be learned from it.
        """
        if isinstance(record, BadRecord):
            raise record
        files = record.get("files")

        def opened(link: object) -> Picture:
            if isinstance(files, dict) and isinstance(link, str):
                link = files.get(link, link)
            return self.links.open(link)

        return SCHEMAS[self.schema](record, opened)


def records_of(path: Path) -> AnyRecords:
    """Returns the records of a folder or file, as its suffix says.

    Raises:
        ValueError: if the suffix is of no format that is read, or nothing is there.
    """
    if path.is_dir():
        return FolderRecords(path)
    formats = {".json": JsonRecords, ".jsonl": JsonRecords, ".parquet": ParquetRecords, ".tar": TarRecords}
    if path.suffix not in formats or not path.is_file():
        got = path.suffix or "no suffix" if path.is_file() else "no such file"
        raise ValueError(f"{path} must be a folder or a file {', '.join(formats)}, got {got}")
    return formats[path.suffix](path)
