"""The part of a command line that names a collection, alike in all commands that read one."""

import argparse
from pathlib import Path
from typing import get_args

from rebus.data.hub_records import HubRecords
from rebus.data.picture_links import PictureLinks
from rebus.data.remote_pictures import RemotePictures
from rebus.data.sources import AnyRecords, SchemaName, Source, records_of

_HUB = "hf:"


def add_source_arguments(parser: argparse.ArgumentParser, *, needs_schema: bool) -> None:
    """Adds the arguments that ``source_of`` reads."""
    path = (
        "a folder of pictures and texts; a file .json, .jsonl, .parquet or .tar; or a dataset of Hugging Face (of the "
        "extra `data`): hf:OWNER/NAME, which is downloaded, or hf:FOLDER, which may be one that save_to_disk wrote"
    )
    parser.add_argument("path", help=path)
    for name, text in [("subset", "subset of hf:..."), ("split", f"split of hf:...; by default {HubRecords.split}")]:
        parser.add_argument(f"--{name}", help=text)
    streaming = "read rows of hf:... as they come instead of downloading them first"
    parser.add_argument("--streaming", action="store_true", help=streaming)
    without = "" if needs_schema else "; without it all are tried"
    help_text = f"format of the records{without}"
    parser.add_argument("--schema", choices=get_args(SchemaName), required=needs_schema, help=help_text)
    parser.add_argument(
        "--pictures", type=Path, help="folder that paths of pictures start from; by default that of PATH"
    )
    remote = "fetch pictures named by URLs, from public addresses only; by default records with them are bad ones"
    parser.add_argument("--allow_remote", action="store_true", help=remote)


def source_of(chosen: argparse.Namespace, size_px: int) -> Source:
    """Returns the collection that a command line names, with pictures of a size.

    Raises:
        ValueError: if there is no such folder or file, or an option is for another kind of collection.
    """
    records, root = _records_of(chosen)
    remote = RemotePictures() if chosen.allow_remote else None
    return Source(
        records=records,
        schema=chosen.schema or "captions",
        links=PictureLinks(size_px=size_px, root=chosen.pictures or root, remote=remote),
    )


def _records_of(chosen: argparse.Namespace) -> tuple[AnyRecords, Path | None]:
    """Returns the records, and the folder that their pictures lie in, if there is one."""
    if chosen.path.startswith(_HUB):
        name = chosen.path.removeprefix(_HUB)
        split = chosen.split or HubRecords.split
        records = HubRecords(name, subset=chosen.subset, split=split, streaming=chosen.streaming)
        return records, Path(name) if Path(name).is_dir() else None
    for option in ("subset", "split", "streaming"):
        if getattr(chosen, option):
            raise ValueError(f"--{option} must come with a dataset {_HUB}..., got {chosen.path}")
    path = Path(chosen.path)
    return records_of(path), path if path.is_dir() else path.parent
