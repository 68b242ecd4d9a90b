"""The part of a command line that names a collection, alike in all commands that read one."""

import argparse
from pathlib import Path
from typing import get_args

from rebus.data.picture_links import PictureLinks
from rebus.data.remote_pictures import RemotePictures
from rebus.data.sources import SchemaName, Source, records_of


def add_source_arguments(parser: argparse.ArgumentParser, *, needs_schema: bool) -> None:
    """Adds the arguments that ``source_of`` reads."""
    parser.add_argument("path", type=Path, help="a folder of pictures and texts, or a .json, .jsonl, .parquet or .tar")
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
        ValueError: if there is no such folder or file.
    """
    root = chosen.pictures or (chosen.path if chosen.path.is_dir() else chosen.path.parent)
    remote = RemotePictures() if chosen.allow_remote else None
    return Source(
        records=records_of(chosen.path),
        schema=chosen.schema or "captions",
        links=PictureLinks(size_px=size_px, root=root, remote=remote),
    )
