"""Folders that are whole or absent."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rebus.train import checkpoint


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


def make_checkpoint(output: Path, step: int) -> Path:
    folder = output / f"checkpoint-{step}"
    write(checkpoint.draft(folder), **{"state.json": json.dumps({"step": step}), "weights": "1234"})
    checkpoint.publish_checkpoint(folder)
    return folder


def found(output: Path) -> str | None:
    folder, _ = checkpoint.newest(output)
    return None if folder is None else folder.name


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
    assert checkpoint.newest(tmp_path) == (None, [])
    for step in (5, 9, 10):
        make_checkpoint(tmp_path, step)
    checkpoint.draft(tmp_path / "checkpoint-11")
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoint.newest(tmp_path) == (tmp_path / "checkpoint-10", [])
    assert checkpoint.read_state(tmp_path / "checkpoint-10") == {"step": 10}


def test_only_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 9, 100):
        make_checkpoint(tmp_path, step)
    checkpoint.draft(tmp_path / "checkpoint-101")
    make_checkpoint(tmp_path, 102)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-100", "checkpoint-102", "newest_checkpoint"}


def shorten(folder: Path) -> None:
    (folder / "weights").write_text("123")


def alter(folder: Path) -> None:
    (folder / "weights").write_text("1235")


def remove(folder: Path) -> None:
    (folder / "weights").unlink()


def unseal(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1")


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (shorten, "weights not as written"),
        (alter, "weights not as written"),
        (remove, "weights missing"),
        (unseal, "no manifest.json that can be read"),
        (garble, "no manifest.json that can be read"),
    ],
)
def test_a_damaged_checkpoint_is_left_out_for_the_one_before(
    tmp_path: Path, harm: Callable[[Path], None], problem: str
) -> None:
    make_checkpoint(tmp_path, 5)
    harm(make_checkpoint(tmp_path, 6))
    folder, problems = checkpoint.newest(tmp_path)
    assert folder == tmp_path / "checkpoint-5"
    assert len(problems) == 1 and problems[0].startswith(f"checkpoint-6 is damaged and left out: {problem}")
    assert (tmp_path / "checkpoint-6.damaged").is_dir()
    make_checkpoint(tmp_path, 6)
    assert found(tmp_path) == "checkpoint-6"


def test_lost_checkpoints_are_no_fresh_start(tmp_path: Path) -> None:
    shorten(make_checkpoint(tmp_path, 5))
    with pytest.raises(ValueError, match="must hold a whole checkpoint to go on from, got checkpoint-5 is damaged"):
        checkpoint.newest(tmp_path)
    with pytest.raises(ValueError, match="got none, though checkpoint-5 was written. Delete .*newest_checkpoint"):
        checkpoint.newest(tmp_path)
    (tmp_path / "newest_checkpoint").unlink()
    assert found(tmp_path) is None
