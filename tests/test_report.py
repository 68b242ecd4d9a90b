import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torchmetrics.functional.regression import kendall_rank_corrcoef

from rebus.data.captions import canonical_caption, description
from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.samples import Picture
from rebus.data.scene_questions import QUESTION_KINDS
from rebus.data.scene_sampler import HELD_OUT_FACT, SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import draw
from rebus.evaluation import caption_benchmark, chosen_judges, report
from rebus.evaluation.answer_benchmark import AnswerBenchmark, held_out_questions
from rebus.evaluation.benchmark import Workbench, attempted
from rebus.evaluation.benchmarks import chosen_benchmarks
from rebus.evaluation.caption_benchmark import CaptionBenchmark
from rebus.evaluation.detector import Detection, DetectorConfig
from rebus.evaluation.drawing_benchmark import DRAWING_TASKS, DrawingBenchmark
from rebus.evaluation.drawing_sheet import drawing_sheet
from rebus.evaluation.figures import figures
from rebus.evaluation.judges import Judge
from rebus.evaluation.report import evaluate
from rebus.evaluation.report_folder import Evaluated, read_done
from rebus.evaluation.report_table import markdown

BENCHMARKS = (DrawingBenchmark(number=3), AnswerBenchmark(number=14), CaptionBenchmark(number=6))
CEILINGS = ("judge_ceiling", "rebuilt_ceiling")
MADE = {"model": "somewhere", "model_hash": "0123", "seed": 0, "seconds": 1.0}
ONE_OF_EACH = [replace(one, number=1) for one in BENCHMARKS]


class KnowingSampler(SceneSampler):
    """Remembers the scenes that it gave, by their pictures and by their prompts."""

    def __init__(self, pack):
        super().__init__(pack, mini_concepts(pack), "held_out")
        self.by_picture, self.by_prompt = {}, {}

    def scene(self, rng, task=None, concept=None):
        scene = super().scene(rng, task, concept)
        self.by_picture[draw(scene, self.pack).tobytes()] = scene
        self.by_prompt[canonical_caption(scene, self.pack)] = scene
        return scene

    def of(self, picture):
        return self.by_picture[np.asarray(picture).tobytes()]


blank = Image.new("RGB", (128, 128))


class Knowing:
    """Model, detector and reader in one, who knows the scenes, but draws no signs, cannot rebuild counts, says yes."""

    saved = SimpleNamespace(hash="0123")

    def __init__(self, sampler):
        self.sampler, self.batches = sampler, []

    def draw(self, prompts, *, seed):
        self.batches.append(list(seed))
        scenes = [self.sampler.by_prompt[prompt] for prompt in prompts]
        pictures = [draw(scene, self.sampler.pack) * (scene.sign is None) for scene in scenes]
        return [SimpleNamespace(image=Image.fromarray(picture)) for picture in pictures]

    def rebuild(self, images):
        return [SimpleNamespace(image=image if self.sampler.of(image).task != "count" else blank) for image in images]

    def answers(self, images, questions):
        return ["Yes." for _ in questions]

    def captions(self, images):
        return [
            description(self.sampler.of(image), self.sampler.pack).replace(" style", " fashion") for image in images
        ]

    def look(self, image):
        return Picture(pixels=np.asarray(image))

    def replies(self, chats):
        return ["Yes." for _ in chats]

    def log_likelihoods(self, chats, texts):
        return [torch.zeros(1) for _ in texts]

    def detect(self, images):
        pictures = rearrange((images * 255).round().byte(), "b c h w -> b h w c")
        scenes = [self.sampler.of(image) if image.any() else None for image in pictures]
        return [
            [
                Detection(one.concept_id, one.x + one.size / 2, one.y + one.size / 2, float(one.size), 1.0)
                for one in items
            ]
            for items in (scene.items if scene else () for scene in scenes)
        ]

    def read(self, picture):
        return [self.sampler.by_picture[picture.tobytes()].sign or ""] if picture.any() else []


@pytest.fixture(scope="module")
def knowing():
    return Knowing(KnowingSampler(EmojiPack.open()))


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    """Few captions to count words in; tests/test_caption_benchmark.py looks at what comes of the marks."""
    monkeypatch.setattr(caption_benchmark, "_CORPUS", 6)


@pytest.fixture
def bench(knowing):
    pack, knowing.batches = knowing.sampler.pack, []
    judge = Judge(knowing, knowing, pack)
    return Workbench(model=knowing, samples=SceneSamples(knowing.sampler), judges=(judge,), batch_size=2)


def outcomes(bench, benchmarks=BENCHMARKS):
    return {name: done.outcome for name, done in evaluate(bench, benchmarks).items()}


def test_figures_of_a_model_that_draws_all_but_signs(bench):
    found = figures(outcomes(bench), seed=0)
    scores = {group: {name: found[group][name]["score"] for name in DRAWING_TASKS} for group in CEILINGS}
    assert (
        (found["drawings"]["score"], found["drawings"]["n"])
        == (15 / 18, 18)
        == tuple(found["rebuilt_ceiling"]["drawings"][key] for key in ("score", "n"))
    )
    perfect = dict.fromkeys(DRAWING_TASKS, 1.0)
    assert {name: found[name]["score"] for name in DRAWING_TASKS} == perfect | {"sign_text": 0.0}
    assert scores == {"judge_ceiling": perfect, "rebuilt_ceiling": perfect | {"counting": 0.0}}
    assert all(found[name]["n"] == 3 for name in DRAWING_TASKS)
    assert bench.model.batches == [[0, 1], [2]] * 6
    assert {kind: score["n"] for kind, score in found["vqa_by_kind"].items()} == dict.fromkeys(QUESTION_KINDS, 2)
    asked = held_out_questions(bench.samples, 14)
    right = [question.answer for _, question in asked]
    by_fact = Counter(HELD_OUT_FACT[scene.task] for scene, _ in asked)
    assert {fact: score["n"] for fact, score in found["vqa_by_held_out"].items()} == by_fact
    assert found["vqa"]["n"] == 14 and found["vqa"]["score"] == right.count("yes") / 14
    facts = {"score": 0.0, "low": 0.0, "high": pytest.approx(0.39, abs=0.01), "n": 6, "failed": 0}
    assert found["caption_facts"] == facts | {"interval": "wilson", "kind": "share"}
    assert found["failures"] == {}


def test_items_are_the_same_every_time_and_held_out(bench):
    one, other = (outcomes(bench, ONE_OF_EACH) for _ in range(2))
    for name, outcome in one.items():
        assert outcome.marks == other[name].marks
        assert [shown.prompt for shown in outcome.shown.values()] == [
            shown.prompt for shown in other[name].shown.values()
        ]
    assert all(bench.samples.sampler.is_in_split(scene) for scene in bench.samples.sampler.by_prompt.values())


def test_drawings_count_on_from_the_seed(bench):
    outcomes(replace(bench, seed=7), BENCHMARKS[:1])
    assert bench.model.batches == [[7, 8], [9]] * 6


class Failing:
    """Finds nothing in black pictures but an error."""

    def __init__(self, finder):
        self.finder = finder

    def detect(self, images):
        if any(not image.any() for image in images):
            raise RuntimeError("nothing  there")
        return self.finder.detect(images)


def test_a_judge_that_fails_on_one_picture_spoils_no_other(bench):
    first, second = Judge(Failing(bench.model), bench.model, bench.samples.pack), bench.judges[0]
    drawn = outcomes(replace(bench, judges=(first, second)), BENCHMARKS[:1])
    found = figures(drawn, seed=0)
    nothing = {"score": None, "low": None, "high": None, "interval": None, "n": 0, "failed": 3, "kind": "share"}
    assert found["sign_text"] == nothing and found["rebuilt_ceiling"]["counting"] == nothing
    assert found["second_judge"]["sign_text"]["score"] == 0 and found["second_judge"]["sign_text"]["n"] == 3
    assert found["failures"]["sign_text"] == {"RuntimeError: nothing  there": 3}
    assert [one.passed for one in drawn["drawing"].shown.values()] == [True] * 15 + [None] * 3
    table = markdown(found | MADE)
    assert "| sign_text |  |  | 0 | 3 | 1.000 | 1.000 | 0.000 | 1.000 |  |" in table
    assert "- sign_text: RuntimeError: nothing there (3)" in table


def test_a_batch_that_fails_is_tried_item_by_item():
    sizes = []

    def halves(part):
        sizes.append(len(part))
        return [1 / one for one in part]

    done, failed = attempted(halves, {"a": 1, "b": 2, "c": 0, "d": 4, "e": 5}, 2)
    assert done == {"a": 1, "b": 1 / 2, "d": 1 / 4, "e": 1 / 5}
    assert failed == {"c": "ZeroDivisionError: division by zero"}
    assert sizes == [2, 2, 1, 1, 1]
    assert attempted(lambda part: [], {"a": 1}, 2)[1] == {
        "a": "ValueError: zip() argument 2 is shorter than argument 1"
    }


def test_two_judges_and_how_they_agree(bench):
    class Blind:
        def detect(self, images):
            return [[] for _ in images]

    blind = Judge(Blind(), bench.model, bench.samples.pack)
    found = figures(outcomes(replace(bench, judges=(*bench.judges, blind)), BENCHMARKS[:1]), seed=0)
    assert found["second_judge"]["one_object"]["score"] == 0 == found["second_judge_ceiling"]["one_object"]["score"]
    assert found["judge_agreement"]["one_object"] == {"same": 0.0, "kendall": None, "n": 3}
    assert found["judge_agreement"]["background"]["same"] == found["second_judge"]["background"]["score"] > 0
    both = [[one["score"] for one in (found[name], found["second_judge"][name])] for name in found["second_judge"]]
    expected = kendall_rank_corrcoef(*torch.tensor(both).T).item()
    assert found["judge_agreement"]["all_scores"] == {"kendall": pytest.approx(expected), "n": 7}
    assert f"Order of the 7 scores by both judges: Kendall's tau {expected:.2f}" in markdown(found | MADE)


def test_sheet_frames_what_passed_in_green_and_what_failed_in_red(bench):
    shown = list(outcomes(bench, ONE_OF_EACH)["drawing"].shown.values())
    sheet = np.asarray(drawing_sheet([shown[0], shown[-1]]))
    (red_1, green_1, _), (red_2, green_2, _) = sheet[6, 60].astype(int), sheet[6, 148 + 60].astype(int)
    assert green_1 > red_1 + 50 and red_2 > green_2 + 50
    assert (sheet[8:136, 8:136] == shown[0].picture).all()


# The command


@pytest.fixture
def command(knowing, tmp_path, monkeypatch, capsys):
    """Runs the command on the knowing model, with one of each item, and returns the JSON of its last line."""
    DetectorConfig(concepts=knowing.sampler.concepts, width=6, depth=1).build().save(tmp_path / "judge")
    monkeypatch.setattr(report.Rebus, "load", lambda folder, **settings: knowing)
    monkeypatch.setattr(chosen_judges, "SignReader", lambda: knowing)
    monkeypatch.setattr(report.EmojiPack, "open", lambda: knowing.sampler.pack)
    monkeypatch.setattr(report, "mini_concepts", lambda pack: knowing.sampler.concepts)
    monkeypatch.setattr(report, "SceneSampler", lambda pack, concepts, split: knowing.sampler)

    def run(*flags, limit=1):
        knowing.batches = []
        judge = ["--judge", str(tmp_path / "judge"), "--limit", str(limit), "--json"]
        which = [] if "--benchmarks" in flags else ["--benchmarks", "drawing,vqa,captions"]
        report.main(["--model", "somewhere", *which, *judge, *map(str, flags)])
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return run


def test_command_ends_with_one_json_line(command, tmp_path):
    found = command("--contact_sheet", tmp_path / "sheet.png", "--second_judge", "sprites")
    assert found["model"] == "somewhere" and found["model_hash"] == "0123" and found["seed"] == 0
    assert found["benchmarks"] == {name: {"number": 1} for name in ("drawing", "vqa", "captions")}
    assert {*DRAWING_TASKS, "vqa", "caption_facts", "vqa_by_kind", "seconds", *CEILINGS} < set(found)
    assert found["one_object"]["score"] == 0 and found["second_judge"]["one_object"]["score"] == 1
    assert found["judge_agreement"]["one_object"] == {"same": 0.0, "kendall": None, "n": 1}
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width == 8 * 148


def test_a_report_goes_on_where_it_was_stopped(command, knowing, tmp_path):
    folder = tmp_path / "report"
    flags = ("--output", folder)
    assert command("--benchmarks", "vqa", *flags)["benchmarks"] == {"vqa": {"number": 1}}
    written = (folder / "vqa.json").stat().st_mtime_ns
    whole = command(*flags)
    assert knowing.batches == [[0]] * 6 and (folder / "vqa.json").stat().st_mtime_ns == written
    again = command(*flags)
    assert knowing.batches == [] and again == whole == json.loads((folder / "report.json").read_text())
    assert "| one_object | 0.000 | 0.000 to 0.793 | 1 | 0 | 0.000 | 0.000 |" in (folder / "report.md").read_text()
    assert (folder / "scores.png").stat().st_size > 1000
    _, done = read_done(folder, "drawing")
    fresh = outcomes(Workbench(model=knowing, samples=SceneSamples(knowing.sampler)), ())
    assert fresh == {} and len(done.outcome.shown) == 6


def test_marks_of_another_model_or_size_are_refused(command, knowing, tmp_path, monkeypatch, capsys):
    def refusal(*flags, **settings):
        with pytest.raises(SystemExit, match="2"):
            command("--benchmarks", "captions", "--output", tmp_path / "report", *flags, **settings)
        assert knowing.batches == []
        return capsys.readouterr().err

    command("--benchmarks", "captions", "--output", tmp_path / "report")
    assert "captions.json must be made with seed 3, got 0; take another --output" in refusal("--seed", 3)
    assert "made with benchmark {'number': 2}, got {'number': 1}" in refusal(limit=2)
    monkeypatch.setattr(knowing, "saved", SimpleNamespace(hash="4567"))
    assert "must be made with model_hash 4567, got 0123" in refusal()
    (tmp_path / "report" / "captions.json").write_text("{")
    assert "captions.json must be a file of a report, got Expecting property name" in refusal()
    (tmp_path / "report" / "captions.json").write_text("{}")
    assert "captions.json must hold marks as this version writes them, got KeyError('shown')" in refusal()


@dataclass(frozen=True, kw_only=True)
class FromFile:
    number: int = 5
    path: Path | None = None
    name = "file"
    is_judged = False

    def check(self):
        if not self.path.is_file():
            raise ValueError(f"file.path must be a file, got {self.path}")

    def run(self, bench):
        raise AssertionError


def test_benchmarks_that_need_a_path_run_where_they_are_given_one(tmp_path):
    among = (*BENCHMARKS, FromFile())
    file = tmp_path / "prompts.txt"
    file.write_text("a cat")
    assert chosen_benchmarks(None, None, {}, among) == list(BENCHMARKS)
    assert chosen_benchmarks(None, 2, {"file": file}, among)[-1] == FromFile(number=2, path=file)
    evaluated = Evaluated(model_hash="0", dtype="float32", seed=0, judges=("11",))
    hashes = [evaluated.made_with(FromFile(path=file))["benchmark"]["file_hash"]]
    file.write_text("a dog")
    assert hashes != [evaluated.made_with(FromFile(path=file))["benchmark"]["file_hash"]]
    assert evaluated.made_with(FromFile(path=file))["judges"] == ()
    assert chosen_benchmarks(["vqa", "vqa"], 20, {}, among) == [BENCHMARKS[1]]
    for names, paths, message in (
        (["file"], {}, "file must have the path of its files, got none: --path file=PATH"),
        (["file"], {"file": tmp_path}, "file.path must be a file, got "),
        (["files"], {}, "benchmarks must be of drawing, vqa, captions, file, got files"),
        (None, {"vqa": file}, "paths must be of benchmarks that take one, got vqa"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen_benchmarks(names, None, paths, among)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--benchmarks", "vqa,vqas"], ", got vqas"),
        (["--path", "here"], "--path must be NAME=PATH, got here"),
        (["--output", __file__], "--output must be a folder, got the file "),
        (
            ["--contact_sheet", "sheet.jpg"],
            "must be a .png file in a folder that exists, got sheet.jpg",
        ),
        (["--contact_sheet", "a.png", "--benchmarks", "vqa"], "--contact_sheet must go with a benchmark that draws"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(flags)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_matplotlib_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("rebus.evaluation.report_table.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        report.main(["--output", str(tmp_path / "report")])
    assert "plots must have matplotlib installed: pip install 'rebus-lm[evaluation]'" in capsys.readouterr().err


def test_a_wrong_folder_is_one_line_and_exit_2(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["--model", str(tmp_path), "--judge", str(tmp_path)])
    assert "must hold a saved detector" in capsys.readouterr().err.splitlines()[-1]
    DetectorConfig(concepts=mini_concepts(EmojiPack.open())[1:], width=6, depth=1).build().save(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        report.main(["--judge", str(tmp_path)])
    assert "must know all objects that are asked for, got none of cat" in capsys.readouterr().err.splitlines()[-1]
