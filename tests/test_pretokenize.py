import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rebus.data import pretokenize as command
from rebus.data.bad_data import BadDataConfig, TooManyBadRecords
from rebus.data.loading import ShardLoader
from rebus.data.picture_links import PictureLinks
from rebus.data.pretokenize import PretokenizeConfig, Pretokenizer, pretokenize
from rebus.data.records import JsonRecords
from rebus.data.rendering import render
from rebus.data.samples import pictures, with_tokens
from rebus.data.shards import Shards, shard_path
from rebus.data.sources import Source

WORDS = ("a cat", "the dog on the left", "what is there?", "two blue cats with three red dogs")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(23):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        lines.append(json.dumps({"prompt": WORDS[index % 4], "image": f"{index}.png"}))
    lines[5], lines[17] = '{"prompt": "a cat"}', "no JSON"
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def config(collection, saved_model, tmp_path):
    links = PictureLinks(size_px=1, root=collection)
    return PretokenizeConfig(
        source=Source(records=JsonRecords(collection / "pairs.jsonl"), schema="text_to_image", links=links),
        image_tokenizer=saved_model / "image_tokenizer",
        text_tokenizer=saved_model,
        output=tmp_path / "shards",
        records_per_shard=5,
        max_ids=96,
        bad_data=BadDataConfig(max_rate=0.5),
    )


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_what_the_samples_render_to(config):
    log = pretokenize(config)
    assert log.num_good == 21 and log.bad == {"schema": 1, "not_json": 1}
    own, shards = Pretokenizer(config), Shards(config.output)
    expected = []
    for sample, _ in own.source.samples(BadDataConfig(max_rate=1.0).build()):
        pixels = torch.stack([torch.from_numpy(one.pixels) for one in pictures(sample)]).permute(0, 3, 1, 2)
        codes = own.image_tokenizer.encode(pixels.contiguous())
        coded = with_tokens(sample, [codes.row(index) for index in range(len(pixels))])
        expected.append(render(coded, own.text_tokenizer, own.vocabulary))
    assert [shards.rendered(index) for index in range(len(shards))] == expected
    assert shards.num_ids == sum(len(one.ids) for one in expected)
    bad = [
        json.loads(line) for path in sorted(config.output.glob("*.bad.jsonl")) for line in path.read_text().splitlines()
    ]
    assert [(one["index"], one["reason"]) for one in bad] == [(5, "schema"), (17, "not_json")]


def test_a_run_that_ended_early_goes_on_and_makes_the_same(config, tmp_path, monkeypatch):
    pretokenize(config)
    whole = files(config.output)
    again = replace(config, output=tmp_path / "again")
    with monkeypatch.context() as patch:
        made = Pretokenizer.shard
        patch.setattr(Pretokenizer, "shard", lambda self, number: made(self, number if number < 3 else 1 // 0))
        with pytest.raises(ZeroDivisionError):
            pretokenize(again)
    with pytest.raises(ValueError, match="must hold finished shards, got no manifest.json: pre-tokenize again"):
        Shards(again.output)
    stamp = shard_path(again.output, 0).stat().st_mtime_ns
    shard_path(again.output, 2).unlink()  # as if it had not been written
    pretokenize(again)
    assert files(again.output) == whole
    assert shard_path(again.output, 0).stat().st_mtime_ns == stamp


@pytest.mark.slow  # processes load torch anew
def test_processes_and_kills_change_nothing(config, collection, saved_model, tmp_path):
    pretokenize(config)
    options = ["--schema", "text_to_image", "--model", str(saved_model), "--output", str(tmp_path / "killed")]
    options += ["--records_per_shard", "5", "--max_ids", "96", "--max_bad_rate", "0.5", "--processes", "2"]
    program = [sys.executable, "-m", "rebus.data.pretokenize", str(collection / "pairs.jsonl"), *options]
    run = subprocess.Popen(program, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("*.safetensors")) and run.poll() is None:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    subprocess.run(program, check=True, stderr=subprocess.DEVNULL)
    assert files(tmp_path / "killed") == files(config.output)


def test_shards_of_another_making_are_not_mixed(config):
    pretokenize(config)
    with pytest.raises(ValueError, match="shards of the same making, got records_per_shard 5 instead of 7"):
        pretokenize(replace(config, records_per_shard=7))
    shards = Shards(config.output)
    shards.check_made_by(image_tokenizer=shards.info.image_tokenizer, text_tokenizer=shards.info.text_tokenizer)
    for name in ("image_tokenizer", "text_tokenizer"):
        hashes = {"image_tokenizer": shards.info.image_tokenizer, "text_tokenizer": shards.info.text_tokenizer}
        with pytest.raises(ValueError, match=f"made by {name.replace('_', ' ')} other, got shards of"):
            shards.check_made_by(**hashes | {name: "other"})


def test_damaged_folders_are_refused(config):
    with pytest.raises(ValueError, match="must be a folder of shards, got no info.json"):
        Shards(config.output)
    pretokenize(config)
    shard_path(config.output, 1).rename(shard_path(config.output, 1).with_suffix(".away"))
    with pytest.raises(ValueError, match="got no shard-00001.safetensors"):
        Shards(config.output)
    shard_path(config.output, 1).write_bytes(shard_path(config.output, 0).read_bytes())
    with pytest.raises(ValueError, match="must hold what the manifest says"):
        Shards(config.output)


def test_too_many_bad_records_end_it(config):
    with pytest.raises(TooManyBadRecords, match="see the files beside the shards"):
        pretokenize(replace(config, bad_data=BadDataConfig(max_rate=0.05, min_records=10)))


def test_long_samples_are_left_out(config):
    log = pretokenize(replace(config, max_ids=24))
    assert log.bad["too_long"] > 0 and log.num_good > 0
    shards = Shards(config.output)
    assert max(len(shards.rendered(index).ids) for index in range(len(shards))) <= 24


def test_the_loader_draws_rows_of_any_mixture(config, tmp_path):
    pretokenize(config)
    pretokenize(replace(config, output=tmp_path / "short", max_ids=24))
    mixture = {config.output: 1.0, tmp_path / "short": 3.0}
    loader = ShardLoader([Shards(path) for path in mixture], list(mixture.values()), rows=4, length=96, seed=3)
    batch = loader.batch(7)
    assert batch.ids.shape == (4, 96)
    assert torch.equal(loader.batch(7).ids, batch.ids) and not torch.equal(loader.batch(8).ids, batch.ids)
    for rank in range(2):
        assert torch.equal(loader.batch(7, rank, 2).ids, batch.ids[rank::2])
    shares = [sum(loader.draw(random.Random(seed))[0] == number for seed in range(400)) / 400 for number in (0, 1)]
    assert abs(shares[0] - 0.25) < 0.07 and sum(shares) == 1
    with pytest.raises(ValueError, match="length must be at least the 96 ids"):
        ShardLoader([Shards(config.output)], [1.0], rows=1, length=95, seed=0)
    with pytest.raises(ValueError, match="weights must be positive and one for each of 1 folders"):
        ShardLoader([Shards(config.output)], [], rows=1, length=96, seed=0)


def test_the_command(collection, saved_model, tmp_path, capsys):
    options = ["--schema", "text_to_image", "--model", str(saved_model), "--output", str(tmp_path / "out")]
    assert command.main([str(collection / "pairs.jsonl"), *options, "--max_bad_rate", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("21 samples in ") and "bad records: 2 of 23 (1 schema, 1 not_json)" in printed
    for wrong, message in [(["--max_ids", "0"], "max_ids must be at least 1"), (["--model", "none"], "must hold")]:
        with pytest.raises(SystemExit, match="2"):
            command.main([str(collection / "pairs.jsonl"), *options, *wrong])
        assert message in capsys.readouterr().err
    assert Path(tmp_path / "out" / "manifest.json").is_file()
