"""Folders that are either whole or absent: checkpoints ``checkpoint-<step>`` of a run, and its exported model.

A checkpoint is written under another name, flushed to the disk and renamed, and says of each of its files how long it
is and what its hash is. Beside the checkpoints stands which one is the newest, so that it cannot get lost unnoticed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_KEPT = 2
MANIFEST, NEWEST = "manifest.json", "newest_checkpoint"


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


def publish_checkpoint(folder: Path) -> None:
    """Puts the draft of a checkpoint in its place, with the hashes of its files, and drops those that are too old."""
    files = {str(path.relative_to(draft_of(folder))): _described(path) for path in _files(draft_of(folder))}
    (draft_of(folder) / MANIFEST).write_text(json.dumps(files, indent=2) + "\n")
    publish(folder)
    mark = folder.parent / NEWEST
    _beside(mark, "new").write_text(folder.name)
    _flush(_beside(mark, "new"))
    os.replace(_beside(mark, "new"), mark)
    _flush(folder.parent)
    drop_old(folder.parent)


def newest(output: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest whole checkpoint of a run, if it ever wrote one, and what is wrong with newer ones.

    Those are renamed to ``.damaged``.

    Raises:
        ValueError: if the run had checkpoints, and none of them is there and whole.
    """
    problems = []
    for folder in reversed(_checkpoints(output)):
        problem = damage(folder)
        if problem is None:
            return folder, problems
        problems.append(f"{folder.name} is damaged and left out: {problem}")
        shutil.rmtree(_beside(folder, "damaged"), ignore_errors=True)
        os.replace(folder, _beside(folder, "damaged"))
    mark = output / NEWEST
    if problems or mark.exists():
        found = "; ".join(problems) or f"none, though {mark.read_text()} was written"
        raise ValueError(
            f"{output} must hold a whole checkpoint to go on from, got {found}. Delete {mark} to start anew"
        )
    return None, []


def damage(folder: Path) -> str | None:
    """Returns what is wrong with the files of a checkpoint, or nothing if they are what was written."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
        names = {str(path.relative_to(folder)) for path in _files(folder)} - {MANIFEST}
        if missing := expected.keys() - names:
            return f"{', '.join(sorted(missing))} missing"
        different = [name for name, described in expected.items() if _described(folder / name) != described]
    except (FileNotFoundError, ValueError, AttributeError) as error:  # another OSError says nothing of the files
        return f"no {MANIFEST} that can be read ({error})"
    return f"{', '.join(sorted(different))} not as written" if different else None


def drop_old(output: Path) -> None:
    """Deletes all checkpoints of a run but the newest ones, and drafts that a crash left."""
    for folder in [*_checkpoints(output)[:-NUM_KEPT], *output.glob("checkpoint-*.new")]:
        shutil.rmtree(folder)


def read_state(folder: Path) -> dict[str, Any]:
    """Returns the step and the counters of a whole checkpoint."""
    return json.loads((folder / "state.json").read_text())


def _checkpoints(output: Path) -> list[Path]:
    steps = {}
    for folder in output.glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", folder.name):
            steps[int(match[1])] = folder
    return [steps[step] for step in sorted(steps)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _described(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
