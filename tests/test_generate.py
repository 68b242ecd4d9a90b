import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rebus.data.image_files import MAX_PIXELS
from rebus.generate import main
from rebus.model.drawing_files import write_whole
from rebus.model.rebus import Rebus

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(saved_model, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*flags, model=saved_model):
        main([*flags, "--model", str(model)])
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run, capsys, tmp_path):
    """Runs the command, which must refuse in one line and leave nothing behind; returns the line."""

    def call(*flags, **model):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as leaving:
            run(*flags, **model)
        assert leaving.value.code == 2 and sorted(tmp_path.rglob("*")) == before
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        return err

    return call


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_prompt_becomes_a_png_and_a_record_that_says_how_to_draw_it_again(run, saved_model):
    assert (
        run("--prompt", "a cat", "--output", "cat.png", "--seed", "5", "--cfg-scale", "2", "--top-k", "9")
        == "cat.png\n"
    )
    record = json.loads(Path("cat.json").read_text())
    rebus = Rebus.load(saved_model)
    assert (record["prompt"], record["image"], record["seed"]) == ("a cat", None, 5)
    assert record["settings"] == {
        **{"guidance": 2.0, "picture_guidance": None, "guidance_start": 0.0, "guidance_stop": 1.0, "guesses": 0},
        **{"by_level": False, "temperature": 1.0, "top_k": 9, "top_p": None, "min_p": None, "best_of": 1, "steps": 4},
        **{"painter": "diffusion", "decoder_guidance": 1.0, "height": None, "width": None},
    }
    assert record["model_hash"] == rebus.saved.hash and record["versions"]["torch"] == torch.__version__
    assert (record["device"], record["dtype"], record["batch_size"]) == ("cpu", "float32", 1)
    for name in ("decode_tokens_per_second", "language_model_seconds", "decoder_seconds", "total_seconds"):
        assert record[name] > 0
    assert 50 < record["peak_memory_mb"] < 10_000
    again = rebus.draw(record["prompt"], seed=record["seed"], **record["settings"])[0]
    assert (np.asarray(again.image) == pixels("cat.png")).all()
    assert record["tokens"]["codes"] == again.tokens.ids.tolist()


def test_prompts_and_seeds_are_numbered_through_batches(run, monkeypatch):
    monkeypatch.setattr("rebus.generate.BATCH_SIZE", 2)
    Path("prompts.txt").write_text("two dogs\n\n  \nthe banana, on the left!\n")
    flags = (
        "--prompt",
        "a cat",
        "--prompts-file",
        "prompts.txt",
        "--num-images",
        "2",
        "--seed",
        "10",
        "--output",
        "out",
    )
    names = ["001-a-cat", "002-a-cat", "003-two-dogs", "004-two-dogs"]
    names += ["005-the-banana-on-the-left", "006-the-banana-on-the-left"]
    assert run(*flags).splitlines() == [f"out/{name}.png" for name in names]
    assert {path.stem for path in Path("out").iterdir()} == set(names)
    records = [json.loads(Path(f"out/{name}.json").read_text()) for name in names]
    assert [record["seed"] for record in records] == list(range(10, 16))
    run("--prompt", "two dogs", "--seed", "13", "--output", "alone.png")
    assert np.abs(pixels("alone.png").astype(int) - pixels("out/004-two-dogs.png")).max() <= 1


def test_the_last_line_is_json_on_request(run):
    lines = run("--prompt", "a cat", "--num-images", "2", "--json").splitlines()
    told = json.loads(lines[-1])
    assert [one["file"] for one in told["pictures"]] == lines[:-1] == ["outputs/001-a-cat.png", "outputs/002-a-cat.png"]
    assert told["total_seconds"] >= told["pictures"][0]["total_seconds"]


def test_a_picture_may_be_a_prompt(run):
    run("--prompt", "a cat", "--output", "cat.png")
    common = ("--image", "cat.png", "--prompt", "make it red")
    run(*common, "--output", "red.png")
    assert json.loads(Path("red.json").read_text())["image"] == "cat.png"


def test_codes_are_painted_from_the_file_of_all_and_from_that_of_a_picture(run):
    run("--prompt", "a cat", "--num-images", "3", "--seed", "4", "--output", "drawn", "--tokens-out", "codes/all.json")
    run("--from-tokens", "codes/all.json", "--seed", "4", "--output", "painted")
    for number in (1, 2, 3):
        assert (pixels(f"painted/00{number}.png") == pixels(f"drawn/00{number}-a-cat.png")).all()
    run("--from-tokens", "drawn/002-a-cat.json", "--seed", "5", "--output", "second.png")
    assert (pixels("second.png") == pixels("drawn/002-a-cat.png")).all()
    record = json.loads(Path("second.json").read_text())
    assert record["prompt"] is None and record["decode_tokens_per_second"] is None
    run("--from-tokens", "drawn/002-a-cat.json", "--seed", "5", "--steps", "1", "--output", "other.png")
    run("--from-tokens", "drawn/002-a-cat.json", "--seed", "5", "--decoder-guidance", "3", "--output", "strict.png")
    assert json.loads(Path("strict.json").read_text())["settings"]["decoder_guidance"] == 3.0
    run("--from-tokens", "drawn/002-a-cat.json", "--seed", "5", "--painter", "pixels", "--output", "pixels.png")
    for name in ("other.png", "strict.png", "pixels.png"):
        assert (pixels(name) != pixels("second.png")).any()


def huge(path):
    Image.new("1", (MAX_PIXELS // 4096 + 1, 4096)).save(path)


def cut(path):
    Image.new("RGB", (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "picture.png must be a picture, got no such file"),
        (lambda path: path.write_text("hello"), "picture.png must be a picture .*, got something else"),
        (cut, "picture.png must be a whole picture, got a damaged or truncated one"),
        (huge, f"picture.png must have at most {MAX_PIXELS:,} pixels, got 16385 x 4096 = 67,112,960"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(make, message, refused, tmp_path):
    if make is not None:
        make(tmp_path / "picture.png")
    assert re.search(message, refused("--prompt", "make it red", "--image", "picture.png"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "prompts or else --from-tokens must be given, got neither"),
        (("--prompt", "a cat", "--from-tokens", "a.json"), "must be given, got both"),
        (
            ("--from-tokens", "a.json", "--top-k", "3"),
            "must come with no other settings than how to paint, got top_k",
        ),
        (("--from-tokens", "a.json"), "a.json must hold codes as --tokens-out writes them, got none"),
        (("--prompt", ""), "a prompt must hold text, got an empty one"),
        (("--prompt", "a cat", "--prompt", " \t"), "a prompt must hold text, got an empty one"),
        (("--prompt", "Z" * 300), "a prompt must be at most 85 tokens long, got 30"),
        (("--prompt", "a\udcff"), "text must be characters, got a lone surrogate"),
        (("--prompts-file", "none.txt"), "No such file or directory: 'none.txt'"),
        (("--prompt", "a cat", "--promt", "b"), "unknown flag --promt; did you mean --prompt?"),
        (("--prompt", "a cat", "--zzz=1"), "unknown flag --zzz=1; --help lists them all"),
        (("a cat",), "unknown flag a cat; --help lists them all"),
        (("--prompt", "a cat", "--steps", "x"), "argument --steps: invalid int value: 'x'"),
        (("--prompt", "a cat", "--steps", "0"), "steps must be at least 1, got 0"),
        (("--prompt", "a cat", "--cfg-scale", "-1"), "guidance must be at least 0 and finite, got -1.0"),
        (("--prompt", "a cat", "--temperature", "-1"), "temperature must be at least 0"),
        (("--prompt", "a cat", "--top-p", "2"), "top_p must lie in (0, 1], got 2.0"),
        (("--prompt", "a cat", "--num-images", "0"), "--num-images must be at least 1, got 0"),
        (("--prompt", "a cat", "--seed", "-3"), "seed must lie in [0, 2**63), got -3"),
        (
            ("--prompt", "a cat", "--num-images", "2", "--output", "a.png"),
            "--output must be a folder for 2 pictures, got a",
        ),
        (("--prompt", "a cat", "--dtype", "int4"), "argument --dtype: invalid choice: 'int4' (choose from"),
        (("--prompt", "a cat", "--device", "warp"), "device must be one that torch has here, such as cpu, got warp"),
    ],
)
def test_what_cannot_be_done_is_refused(flags, message, refused):
    assert message in refused(*flags)


def test_a_model_that_is_none_or_does_not_fit_is_refused(refused, saved_model, tmp_path):
    assert "none must be the folder of a saved model, got no such folder" in refused("--prompt", "a cat", model="none")
    for part in ("decoder", "config.json"):
        shutil.copytree(saved_model, tmp_path / part)
    config = tmp_path / "decoder/decoder/config.json"
    config.write_text(config.read_text().replace('"tokenizer_hash": "', '"tokenizer_hash": "x'))
    assert "the decoder must be of image tokenizer" in refused("--prompt", "a cat", model="decoder")
    config = tmp_path / "config.json/config.json"
    config.write_text(config.read_text().replace('"vocab_size": 440', '"vocab_size": 441'))
    assert "must have 440 ids (421 of text, 4 of control and 15 of codes), got vocab_size 441" in refused(
        "--prompt", "a cat", model="config.json"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_tokenizer_hash": "abc"}, "codes must be of image tokenizer .*, got those of abc"),
        ({"codes": [[[1]] * 8]}, "a picture must have 9 positions, got 8"),
        ({"codes": [[[99]] * 9]}, "ids must lie in .0, size. with sizes .15., got codes outside"),
        ({"codes": [[["cat"]] * 9]}, "codes must be .picture..position..stream."),
        ({"codes": []}, "must hold the codes of at least one picture"),
        ({"codes": None}, "codes must be .picture..position..stream."),
    ],
)
def test_codes_that_do_not_fit_are_refused(change, message, run, refused):
    run("--prompt", "a cat", "--tokens-out", "codes.json")
    path = Path("codes.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert re.search(message, refused("--from-tokens", "codes.json"))


@pytest.mark.parametrize("wrong", ["folder", "file/picture.png"])
def test_a_failed_write_leaves_the_old_files_whole(wrong, tmp_path):
    (tmp_path / "first").write_text("old")
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((OSError, ValueError)):
        write_whole({tmp_path / "first": b"new", tmp_path / wrong: b"new"})
    assert (tmp_path / "first").read_text() == "old" and sorted(tmp_path.rglob("*")) == before


def test_the_command_itself_refuses_in_one_line_and_helps(saved_model, tmp_path):
    command = [sys.executable, str(ROOT / "generate.py")]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    wrong = subprocess.run(
        [*command, "--prompt=x", "--modle=y"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == "generate.py: unknown flag --modle=y; did you mean --model?\n"
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and 'python generate.py --prompt "a red apple' in shown.stdout
