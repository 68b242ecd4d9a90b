import json
from types import SimpleNamespace

import numpy as np
import pytest
from einops import rearrange
from PIL import Image

from rebus.data.captions import canonical_caption, description
from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_questions import QUESTION_KINDS
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import draw
from rebus.evaluation import report
from rebus.evaluation.benchmarks import DRAWING_TASKS
from rebus.evaluation.detector import Detection, DetectorConfig
from rebus.evaluation.drawing_sheet import drawing_sheet
from rebus.evaluation.judges import Judge
from rebus.evaluation.report import ReportSizes, evaluate

SIZES = ReportSizes(num_drawings=3, num_answers=14, num_captions=6, batch_size=2)


class KnowingSampler(SceneSampler):
    """Remembers the scenes that it gave, by their pictures and by their prompts."""

    def __init__(self, pack):
        super().__init__(pack, mini_concepts(pack), "held_out")
        self.by_picture, self.by_prompt = {}, {}

    def scene(self, rng, task=None):
        scene = super().scene(rng, task)
        self.by_picture[draw(scene, self.pack).tobytes()] = scene
        self.by_prompt[canonical_caption(scene, self.pack)] = scene
        return scene

    def of(self, picture):
        return self.by_picture[np.asarray(picture).tobytes()]


blank = Image.new("RGB", (128, 128))


class Knowing:
    """Model, detector and reader in one, who knows the scenes, but draws no signs, cannot rebuild counts, says yes."""

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
def world():
    sampler = KnowingSampler(EmojiPack.open())
    knowing = Knowing(sampler)
    return knowing, Judge(knowing, knowing, sampler.pack), SceneSamples(sampler)


def test_figures_of_a_model_that_draws_all_but_signs(world):
    model, judge, samples = world
    done = evaluate(model, judge, samples, SIZES)
    figures = done.figures()
    assert {name: figures[name]["score"] for name in DRAWING_TASKS} == dict.fromkeys(DRAWING_TASKS, 1.0) | {
        "sign_text": 0.0
    }
    assert {name: figures["judge_ceiling"][name]["score"] for name in DRAWING_TASKS} == dict.fromkeys(
        DRAWING_TASKS, 1.0
    )
    assert {name: figures["rebuilt_ceiling"][name]["score"] for name in DRAWING_TASKS} == dict.fromkeys(
        DRAWING_TASKS, 1.0
    ) | {"counting": 0.0}
    assert all(figures[name]["n"] == 3 for name in DRAWING_TASKS)
    assert model.batches == [[0, 1], [2]] * 6
    assert {kind: score["n"] for kind, score in figures["vqa_by_kind"].items()} == dict.fromkeys(QUESTION_KINDS, 2)
    assert figures["vqa"]["n"] == 14 and figures["vqa"]["score"] == sum(one.right == "yes" for one in done.answers) / 14
    assert figures["caption_facts"] == {"score": 0.0, "low": 0.0, "high": pytest.approx(0.39, abs=0.01), "n": 6}
    assert set(figures["one_object"]) == {"score", "low", "high", "n"}


def test_prompts_are_the_same_every_time_and_held_out(world):
    model, judge, samples = world
    one, other = (evaluate(model, judge, samples, SIZES.limited(1)) for _ in range(2))
    assert [drawing[0].prompt for drawing in one.drawings.values()] == [d[0].prompt for d in other.drawings.values()]
    assert one.answers == other.answers and one.captions == other.captions
    assert all(samples.sampler.is_in_split(scene) for scene in samples.sampler.by_prompt.values())


def test_sheet_frames_what_passed_in_green_and_what_failed_in_red(world):
    model, judge, samples = world
    done = evaluate(model, judge, samples, SIZES.limited(1)).drawings
    sheet = np.asarray(drawing_sheet([done["one_object"][0], done["sign_text"][0]]))
    (red_1, green_1, _), (red_2, green_2, _) = sheet[6, 60].astype(int), sheet[6, 148 + 60].astype(int)
    assert green_1 > red_1 + 50 and red_2 > green_2 + 50
    assert (sheet[8:136, 8:136] == done["one_object"][0].picture).all()


def test_command_ends_with_one_json_line(world, tmp_path, monkeypatch, capsys):
    model, judge, samples = world
    DetectorConfig(concepts=samples.sampler.concepts, width=6, depth=1).build().save(tmp_path / "judge")
    monkeypatch.setattr(report.Rebus, "load", lambda folder, **settings: model)
    monkeypatch.setattr(report, "SignReader", lambda: model)
    monkeypatch.setattr(report, "SceneSampler", lambda pack, concepts, split: samples.sampler)
    sheet = tmp_path / "sheet.png"
    flags = ["--judge", str(tmp_path / "judge"), "--limit", "1", "--contact_sheet", str(sheet), "--json"]
    report.main(["--model", "somewhere", *flags])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["model"] == "somewhere"
    assert {*DRAWING_TASKS, "vqa", "caption_facts", "vqa_by_kind", "judge_ceiling", "rebuilt_ceiling", "seconds"} < set(
        figures
    )
    with Image.open(sheet) as picture:
        assert picture.width == 8 * 148


def test_limit_must_be_positive(capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["--limit", "0"])
    assert "limit must be at least 1, got 0" in capsys.readouterr().err


def test_a_wrong_folder_is_one_line_and_exit_2(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["--model", str(tmp_path), "--judge", str(tmp_path)])
    assert "must hold a saved detector" in capsys.readouterr().err.splitlines()[-1]
    DetectorConfig(concepts=mini_concepts(EmojiPack.open())[1:], width=6, depth=1).build().save(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        report.main(["--judge", str(tmp_path)])
    assert "must know all objects that are asked for, got none of cat" in capsys.readouterr().err.splitlines()[-1]
