import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from rebus.data import cluster
from rebus.data import pretokenize as command
from rebus.data import shards as shard_files
from rebus.data.bad_data import BadDataConfig, TooManyBadRecords
from rebus.data.cluster import RayActors
from rebus.data.picture_links import PictureLinks
from rebus.data.pretokenize import pretokenize
from rebus.data.pretokenizer import PretokenizeConfig, Pretokenizer
from rebus.data.records import JsonRecords
from rebus.data.rendering import render
from rebus.data.samples import pictures, with_tokens
from rebus.data.shards import Shards, publish, shard_path
from rebus.data.sources import Source

# Ray Data sets each of its own settings at the start, and so warns of those among them that it will drop.
RAY_WARNINGS = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data.context")
RAY_NICENESS = ("RAY_worker_niceness", "0")  # else its processes wait for all others of a busy machine
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
    marked = shards.marked(np.arange(len(shards)))
    assert [[token if token >= 0 else ~token for token in one.tolist()] for one in marked] == [
        one.ids for one in expected
    ]
    assert [[token if token >= 0 else -100 for token in one.tolist()] for one in marked] == [
        one.targets for one in expected
    ]
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


def test_a_collection_that_has_grown_is_read_to_its_new_end(config, collection, tmp_path):
    lines = (collection / "pairs.jsonl").read_text().splitlines()
    grown = tmp_path / "pairs.jsonl"
    source = replace(config.source, records=JsonRecords(grown))
    for number in (13, 23):
        grown.write_text("\n".join(lines[:number]))
        log = pretokenize(replace(config, source=source))
    assert log.num_good == 21 and len(Shards(config.output)) == 21


def test_a_thousand_shards_are_not_a_thousand_open_files(config):
    pretokenize(replace(config, records_per_shard=1))
    before = len(os.listdir("/proc/self/fd"))
    shards = Shards(config.output)
    assert len(shards) == 21 and len(os.listdir("/proc/self/fd")) == before


def test_a_shard_may_be_made_twice_at_a_time(config, tmp_path, monkeypatch):
    pretokenize(config)
    whole = files(config.output)
    again = replace(config, output=tmp_path / "again")
    others = [Pretokenizer(again)]

    def publish_after_another(draft, path):
        if path == shard_path(again.output, 1) and others:
            others.pop().shard(1)
        publish(draft, path)

    monkeypatch.setattr(shard_files, "publish", publish_after_another)
    again.output.mkdir()
    (again.output / "shard-00002.safetensors.killed.new").write_text("half a shard")
    pretokenize(again)
    assert not others and files(again.output) == whole


@pytest.mark.slow  # processes load torch anew
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ray", [[], ["--ray", "--ray_address", "local"]], ids=["processes", "ray"])
def test_processes_and_kills_change_nothing(ray, config, collection, saved_model, tmp_path, monkeypatch):
    pretokenize(replace(config, records_per_shard=1))
    options = ["--schema", "text_to_image", "--model", str(saved_model), "--output", str(tmp_path / "killed")]
    options += ["--records_per_shard", "1", "--max_ids", "96", "--max_bad_rate", "0.5", "--processes", "2", *ray]
    program = [sys.executable, "-m", "rebus.data.pretokenize", str(collection / "pairs.jsonl"), *options]
    monkeypatch.setenv(*RAY_NICENESS)
    monkeypatch.setenv("PRETOKENIZED", str(tmp_path))
    run = subprocess.Popen(program, start_new_session=True, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("*.safetensors")) and run.poll() is None:
        time.sleep(0.01)
    run.kill()  # others live on for a moment, and may be making what the next run makes
    run.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    try:
        subprocess.run(program, check=True, stderr=subprocess.DEVNULL)
    finally:
        for process in psutil.process_iter():  # Ray's own are in no group with the program that started them
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("PRETOKENIZED") == str(tmp_path):
                    process.kill()
    assert files(tmp_path / "killed") == files(config.output)


@pytest.fixture
def ray_of_two(monkeypatch):
    import ray

    monkeypatch.setenv(*RAY_NICENESS)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.slow  # so do actors
@pytest.mark.timeout(400)
@RAY_WARNINGS
def test_actors_of_ray_make_the_same(config, tmp_path, ray_of_two, monkeypatch):
    expected = pretokenize(config)
    monkeypatch.setattr(cluster, "_FIRST_SHARDS_AN_ACTOR", 1)  # two rounds for the five shards
    by_ray = replace(config, output=tmp_path / "ray")
    log = pretokenize(by_ray, RayActors(number=2))
    assert files(by_ray.output) == files(config.output)
    assert (log.num_good, log.bad) == (expected.num_good, expected.bad)
    assert ray_of_two.is_initialized()  # joined before, so still
    gone = replace(config.source, records=JsonRecords(tmp_path / "gone.jsonl"))
    with pytest.raises(ValueError, match="gone.jsonl must be a file .jsonl or .json, got no such file"):
        pretokenize(replace(config, source=gone, output=tmp_path / "gone"), RayActors(number=2))


def test_a_cluster_that_is_not_there(config, monkeypatch):
    with pytest.raises(ValueError, match="actors must be at least 1, got 0"):
        RayActors(number=0)
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"must have Ray: pip install 'rebus-lm\[cluster\]'"):
        pretokenize(config, RayActors())


@pytest.mark.slow  # importing Ray alone takes seconds
def test_no_cluster_is_running_at_the_address(config, monkeypatch):
    import ray

    def refuse(*_, **__):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)  # which may wait for minutes, or find a cluster of somebody else
    with pytest.raises(ValueError, match=r"ray_address must be that of a running cluster, got auto \(nobody there\)"):
        pretokenize(config, RayActors(address="auto"))


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
    assert shards.lengths.max() <= 24


def test_the_command(collection, saved_model, tmp_path, capsys):
    options = ["--schema", "text_to_image", "--model", str(saved_model), "--output", str(tmp_path / "out")]
    assert command.main([str(collection / "pairs.jsonl"), *options, "--max_bad_rate", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("21 samples in ") and "bad records: 2 of 23 (1 schema, 1 not_json)" in printed
    for wrong, message in [
        (["--split", "test"], "--split must come with a dataset hf:"),
        (["--max_ids", "0"], "max_ids must be at least 1"),
        (["--model", "none"], "must hold"),
        (["--processes", "0"], "processes must be at least 1, got 0"),
        (["--model", "none", "--text_tokenizer", str(saved_model)], "must hold a saved image tokenizer"),
        (["--ray_address", "local"], "--ray_address must come with --ray, got local alone"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            command.main([str(collection / "pairs.jsonl"), *options, *wrong])
        assert message in capsys.readouterr().err
    assert Path(tmp_path / "out" / "manifest.json").is_file()
    with pytest.raises(SystemExit, match="2"):
        command.main([str(collection / "pairs.jsonl"), *options[:2], *options[4:], "--text_tokenizer", "any"])
    assert "--model must be given, or both --image_tokenizer and --text_tokenizer" in capsys.readouterr().err


@pytest.mark.slow  # the import of datasets alone takes seconds
def test_the_command_reads_what_datasets_saved(collection, saved_model, tmp_path):
    import datasets

    pairs = [json.loads(line) for line in (collection / "pairs.jsonl").read_text().splitlines()[:5]]
    (collection / "five.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    rows = datasets.Dataset.from_list([{**pair, "image": str(collection / pair["image"])} for pair in pairs])
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    for source, output in [(str(collection / "five.jsonl"), "lines"), (f"hf:{tmp_path / 'saved'}", "rows")]:
        options = ["--schema", "text_to_image", "--model", str(saved_model), "--output", str(tmp_path / output)]
        assert command.main([source, *options]) == 0
    shard, name = files(tmp_path / "lines"), "shard-00000.safetensors"
    assert files(tmp_path / "rows")[name] == shard[name] and len(shard) == 3
