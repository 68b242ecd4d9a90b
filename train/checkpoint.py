"""Folders that are either whole or absent: checkpoints ``checkpoint-<step>`` of a run, and its exported model."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_KEPT = 2


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replaces a folder by what ``write`` puts into an empty one; a crash leaves the one or the other.

    Between two renames the old folder is called ``.old`` and the new one ``.new``.
    """
    write(draft(folder))
    publish(folder)


def draft_of(folder: Path) -> Path:
    """Returns where the draft of a folder is."""
    return _beside(folder, "new")


def draft(folder: Path) -> Path:
    """Returns an empty folder beside another, to be filled and then published in its place."""
    new = draft_of(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    return new


def publish(folder: Path) -> None:
    """Puts the draft of a folder in its place, once the draft's files are safely on the disk."""
    new, old = draft_of(folder), _beside(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    for path in [*new.rglob("*"), new]:
        _flush(path)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def newest(output: Path) -> Path | None:
    """Returns the checkpoint of the highest step in a run's folder, if there is one."""
    found = _checkpoints(output)
    return found[-1] if found else None


def drop_old(output: Path) -> None:
    """Deletes all checkpoints of a run but the newest ones, and drafts that a crash left."""
    for folder in [*_checkpoints(output)[:-NUM_KEPT], *output.glob("checkpoint-*.new")]:
        shutil.rmtree(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """Returns the step and the counters of a checkpoint.

    Raises:
        ValueError: if the folder holds no readable ``state.json``.
    """
    try:
        return json.loads((folder / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} must be a checkpoint: {error}") from error


def _checkpoints(output: Path) -> list[Path]:
    steps = {}
    for folder in output.glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
            steps[int(match[1])] = folder
    return [steps[step] for step in sorted(steps)]


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f"{folder.name}.{kind}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
