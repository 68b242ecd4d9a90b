"""Folders that are whole or absent."""

import json
from pathlib import Path

import pytest

from rebus.train import checkpoint


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


def make_checkpoint(output: Path, step: int) -> None:
    checkpoint.write_folder(
        output / f"checkpoint-{step}", lambda new: write(new, **{"state.json": f'{{"step": {step}}}'})
    )


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    checkpoint.write_folder(folder, lambda new: write(new, a="1", b="2"))
    checkpoint.write_folder(folder, lambda new: write(new, a="3"))
    assert content(folder) == {"a": "3"}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    checkpoint.write_folder(folder, lambda new: write(new, a="1"))

    def fail(new: Path) -> None:
        write(new, a="half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_folder(folder, fail)
    assert content(folder) == {"a": "1"}
    checkpoint.write_folder(folder, lambda new: write(new, b="2"))
    assert content(folder) == {"b": "2"}


def test_newest_counts_as_numbers_and_skips_drafts(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 10, 9):
        make_checkpoint(tmp_path, step)
    checkpoint.draft(tmp_path / "checkpoint-11")
    (tmp_path / "checkpoint-best").mkdir()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.name == "checkpoint-10"
    assert checkpoint.read_state(newest) == {"step": 10}


def test_only_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 9, 100):
        make_checkpoint(tmp_path, step)
    checkpoint.draft(tmp_path / "checkpoint-101")
    checkpoint.drop_old(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-100"}


@pytest.mark.parametrize("text", [None, "{"])
def test_unreadable_state_names_the_folder(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        write(tmp_path, **{"state.json": text})
    with pytest.raises(ValueError, match="must be a checkpoint"):
        checkpoint.read_state(tmp_path)


def test_state_is_json(tmp_path: Path) -> None:
    write(tmp_path, **{"state.json": json.dumps({"step": 3, "seconds": 1.5})})
    assert checkpoint.read_state(tmp_path) == {"step": 3, "seconds": 1.5}
