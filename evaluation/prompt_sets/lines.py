"""Reads files of prompts line by line, up to a length and a number, and refuses one with the place of what is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_LINES = 100_000
"""No public set is a tenth as long; a file beyond this is another file."""
LONGEST_LINE_BYTES = 65_536


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields each line that is not blank, without its end, after its place, ``file:line``.

    Raises:
        ValueError: if there is no such file, or a line is too long, one too many, or no UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path} must be a file of prompts, got none")
    with path.open("rb") as file:
        for number in range(1, MOST_LINES + 2):
            place = f"{path}:{number}"
            line = file.readline(LONGEST_LINE_BYTES + 1)
            if not line:
                return
            if number > MOST_LINES:
                raise ValueError(f"{path} must have at most {MOST_LINES} lines, got more")
            if len(line) > LONGEST_LINE_BYTES:
                raise ValueError(f"{place}: a line must have at most {LONGEST_LINE_BYTES} bytes, got more")
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: a line must be UTF-8, got {error.reason}") from error
            if text.strip():
                yield place, text


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the object of each line that is not blank, after its place.

    Raises:
        ValueError: as ``numbered_lines``, or if a line holds no JSON object.
    """
    for place, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: a line must be a JSON object, got {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: a line must be a JSON object, got {type(record).__name__}")
        yield place, record


def text_field(record: dict[str, Any], name: str, place: str) -> str:
    """Returns a text of a record.

    Raises:
        ValueError: if it is missing, empty or no text.
    """
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name} must be a text that is not empty, got {value!r}")
    return value


def whole_number(record: dict[str, Any], name: str, place: str, least: int) -> int:
    """Returns a whole number of a record.

    Raises:
        ValueError: if it is missing, no whole number, or too small.
    """
    value = record.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{place}: {name} must be a whole number of at least {least}, got {value!r}")
    return value


def refuse_empty(prompts: list[Any], path: Path) -> None:
    """Refuses a file without prompts.

    Raises:
        ValueError: if there are none.
    """
    if not prompts:
        raise ValueError(f"{path} must hold at least one prompt, got none")
