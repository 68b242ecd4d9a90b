"""Public sets of prompts as benchmarks of the report, and the command that draws them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.evaluation import draw_prompts
from rebus.evaluation.benchmark import FileBenchmark, Workbench
from rebus.evaluation.benchmarks import BENCHMARKS, chosen_benchmarks
from rebus.evaluation.detector import Detection, DetectorConfig
from rebus.evaluation.figures import figures
from rebus.evaluation.geneval_benchmark import GenEvalBenchmark
from rebus.evaluation.judges import Judge
from rebus.evaluation.words_benchmark import WordsBenchmark

GENEVAL = (
    ("single_object", "a photo of a cat", [("cat", 1)], {}),
    ("single_object", "a photo of a car", [("car", 1)], {}),
    ("counting", "a photo of two apples", [("apple", 2)], {"exclude": [{"class": "apple", "count": 3}]}),
    ("single_object", "a photo of a bench", [("bench", 1)], {}),
    ("single_object", "a photo of a toaster", [("toaster", 1)], {}),
)
SHOWN = {
    "a photo of a cat": ["cat"],
    "a photo of a car": ["cat"],
    "a photo of two apples": ["red apple"] * 2,
    "a cat": [],
    "a car": ["automobile"],
    "two red apples": ["red apple"] * 3,
}
"""What the artist draws, as the labels of emoji."""


class Artist:
    """Model, detector and reader in one: paints a number, by which it knows again what it was asked for."""

    saved = SimpleNamespace(hash="0123")

    def __init__(self, pack):
        self.pack, self.asked, self.seeds = pack, [], []

    def check(self, prompts):
        if "a photo of a car" in prompts:
            raise ValueError("no cars")

    def draw(self, prompts, *, seed):
        self.seeds += seed
        self.asked += prompts
        numbers = range(len(self.asked) - len(prompts), len(self.asked))
        return [SimpleNamespace(image=Image.new("RGB", (32, 32), (number, 0, 0))) for number in numbers]

    def detect(self, images):
        numbers = (images[:, 0, 0, 0] * 255).round().int().tolist()
        labels = [SHOWN[self.asked[number]] for number in numbers]
        return [[Detection(self.pack.find(label).id, 16.0, 16.0, 32.0, 0.9) for label in one] for one in labels]

    def rebuild(self, images):
        raise AssertionError

    def answers(self, images, questions):
        raise AssertionError

    def captions(self, images):
        raise AssertionError

    def read(self, picture):
        text = self.asked[int(picture[0, 0, 0])]
        if "blur" in text:
            raise RuntimeError("nothing to read")
        return text.upper().split(" saying ")[:1]


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture
def bench(pack):
    artist = Artist(pack)
    samples = SceneSamples(SceneSampler(pack, mini_concepts(pack), "held_out"))
    judge = Judge(artist, artist, pack)
    return Workbench(model=artist, samples=samples, judges=(judge, judge), batch_size=2, seed=5)


@pytest.fixture
def geneval(tmp_path):
    rows = [
        {"tag": tag, "include": [{"class": name, "count": count} for name, count in include], "prompt": text, **more}
        for tag, text, include, more in GENEVAL
    ]
    colored = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}
    path = tmp_path / "geneval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, colored]))
    return path


def test_geneval_scores_what_is_covered_and_counts_the_rest(bench, geneval):
    outcome = GenEvalBenchmark(path=geneval, num_samples=2).run(bench)
    marks = {name: dict(one.each) for name, one in outcome.marks.items()}
    single = {"00000/0": 1.0, "00000/1": 1.0, "00001/0": 0.0, "00001/1": 0.0}
    assert marks["geneval/single_object"] == marks["second_judge/geneval/single_object"] == single
    assert marks["geneval/counting"] == {"00002/0": 1.0, "00002/1": 1.0}
    assert not any(one.failed for one in outcome.marks.values())
    assert outcome.others == {
        "geneval_coverage/prompts": 6,
        "geneval_coverage/covered": 3,
        "geneval_coverage/without_emoji": 2,
        "geneval_coverage/with_color": 1,
        "geneval/overall": 0.75,
        "geneval/overall_by_second_judge": 0.75,
    }
    assert bench.model.seeds == [5, 6] * 3
    assert [one.passed for one in outcome.shown.values()] == [True, True, False, False, True, True]
    assert outcome.shown["00001/0"].seen == "nothing asked for" and outcome.shown["00002/0"].seen == "2 apple"
    found = figures({"geneval": outcome}, seed=0)
    assert found["geneval"]["single_object"]["score"] == 0.5 and found["geneval"]["overall"] == 0.75
    assert found["judge_agreement"]["geneval/counting"]["same"] == 1


def test_reworded_prompts_have_a_name_of_their_own(bench, geneval):
    bench = replace(bench, judges=bench.judges[:1])
    outcome = GenEvalBenchmark(path=geneval, num_samples=1, wording="reworded", number=1).run(bench)
    assert bench.model.asked == ["a cat", "two red apples"]
    assert {name: dict(one.each) for name, one in outcome.marks.items()} == {
        "geneval_reworded/single_object": {"00000/0": 0.0},
        "geneval_reworded/counting": {"00002/0": 0.0},
    }


def test_longtext_is_the_share_of_words_read_and_failures_are_no_zeros(bench, tmp_path):
    path = tmp_path / "text.jsonl"
    rows = [
        ("sign", "short", "FRESH bread", ["Fresh bread", "every day"]),
        ("slide", "long", "one saying three", ["One!"]),
        ("slide", "long", "a blur", ["gone"]),
    ]
    keys = ("category", "length", "prompt", "text", "prompt_id")
    records = [dict(zip(keys, (*row, index), strict=True)) for index, row in enumerate(rows)]
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    outcome = WordsBenchmark(name="longtext", path=path, number=2, num_samples=1).run(bench)
    shares = {name: dict(one.each) for name, one in outcome.marks.items()}
    assert shares == {
        "longtext/all": {"0000/0": 0.5, "0001/0": 1.0},
        "longtext/sign": {"0000/0": 0.5},
        "longtext/short": {"0000/0": 0.5},
        "longtext/slide": {"0001/0": 1.0},
        "longtext/long": {"0001/0": 1.0},
    }
    assert outcome.marks["longtext/slide"].failed == {"0002/0": "RuntimeError: nothing to read"}
    assert outcome.others["longtext/text_score"] == 3 / 5
    assert [one.passed for one in outcome.shown.values()] == [False, True, None]


def test_parti_reads_what_is_in_quotation_marks_and_counts_the_rest(bench, tmp_path):
    path = tmp_path / "parti.tsv"
    rows = ('a sign saying "a SIGN"\tArts\tWriting & Symbols', "bond\tAbstract\tBasic")
    path.write_text("\n".join(["Prompt\tCategory\tChallenge\tNote", *(f"{row}\t" for row in rows)]))
    outcome = WordsBenchmark(name="parti", path=path, number=1, num_samples=1).run(bench)
    assert {name: dict(one.each) for name, one in outcome.marks.items()} == {
        f"parti/{name}": {"00000/0": 1.0} for name in ("all", "Arts", "Writing & Symbols")
    }
    assert outcome.others == {"parti_coverage/prompts": 2, "parti_coverage/covered": 1, "parti/text_score": 1}


def test_they_are_benchmarks_of_the_report_that_need_a_path(geneval, tmp_path):
    of_files = {one.name: one for one in BENCHMARKS if isinstance(one, FileBenchmark)}
    assert list(of_files) == ["geneval", "geneval_reworded", "longtext", "parti"]
    for name, one in of_files.items():
        with pytest.raises(ValueError, match=f"{name} must have the path of its files"):
            chosen_benchmarks([name], None, {})
        with pytest.raises(ValueError, match="must be a file of prompts, got none"):
            chosen_benchmarks([name], None, {name: tmp_path})
        with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
            replace(one, num_samples=0)
    (chosen,) = chosen_benchmarks(["geneval_reworded"], 2, {"geneval_reworded": geneval})
    assert chosen == GenEvalBenchmark(path=geneval, number=2, wording="reworded")


# The command


@pytest.fixture
def command(pack, geneval, tmp_path, monkeypatch, capsys):
    artist = Artist(pack)
    DetectorConfig(concepts=mini_concepts(pack), width=6, depth=1).build().save(tmp_path / "judge")
    monkeypatch.setattr(draw_prompts.Rebus, "load", lambda folder, **settings: artist)
    monkeypatch.setattr(draw_prompts.Detector, "load", lambda folder: artist)
    monkeypatch.setattr(draw_prompts.EmojiPack, "open", lambda: pack)

    def run(*flags):
        draw_prompts.main([*map(str, flags), "--output", str(tmp_path / "out"), "--samples", "1", "--json"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_the_command_draws_geneval_and_writes_its_results(command, geneval, tmp_path):
    told = command("geneval", geneval, "--all")
    assert told["prompts"] == 6 and told["covered"] == 3 and told["pictures"] == 5
    assert told["refused"] == {"no cars": 1}
    assert told["scores"] == {"single_object": 1.0, "counting": 1.0, "overall": 1.0}
    folder = tmp_path / "out"
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [one["prompt"] for one in results] == ["a photo of a cat", "a photo of two apples"]
    assert all(np.asarray(Image.open(one["filename"])).shape == (32, 32, 3) for one in results)
    assert sorted(path.parent.name for path in folder.glob("*/metadata.jsonl")) == [
        f"{index:05d}" for index in (0, 2, 3, 4, 5)
    ]


def test_the_command_draws_other_sets(command, tmp_path):
    prompts = tmp_path / "color_val.txt"
    prompts.write_text("a red cup\na blue cup\n")
    assert command("compbench", prompts, "--limit", 1)["pictures"] == 1
    assert [path.name for path in (tmp_path / "out/samples").iterdir()] == ["a red cup_000000.png"]
    prompts.write_text("a green cup\n")
    with pytest.raises(SystemExit, match="2"):
        command("compbench", prompts)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["parti", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["parti", "--all"], "--all and --wording must go with geneval, got parti"),
        (["parti", "--wording", "reworded"], "--all and --wording must go with geneval, got parti"),
        (
            ["geneval", "--wording", "reworded", "--all"],
            "--all must go with prompts as they are, got --wording reworded",
        ),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        draw_prompts.main([*flags, "prompts.tsv", "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err.splitlines()[-1]
