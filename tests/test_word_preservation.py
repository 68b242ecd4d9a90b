import json
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import draw
from rebus.evaluation import reconstruction
from rebus.evaluation.benchmark import Workbench
from rebus.evaluation.judges import Judge
from rebus.evaluation.word_preservation import (
    LETTER_HEIGHTS_PX,
    WordBenchmark,
    edit_distance,
    likeness,
    read_likeness,
    sign_picture,
    word_marks,
)

WORDS = st.text("ABC", max_size=6)


@pytest.fixture(scope="module")
def sampler():
    pack = EmojiPack.open()
    return SceneSampler(pack, mini_concepts(pack)[:5], "held_out")


@pytest.fixture
def scene(sampler):
    return sampler.scene(random.Random(0), "sign")


class Reader:
    """Reads all letters, or what it is told to, wherever any are left: a picture all black has none."""

    def __init__(self, line="abcdefghijklmnopqrstuvwxyz"):
        self.line = line

    def read(self, picture):
        return ["", self.line] if picture.any() else []


def test_a_sign_of_own_height_is_that_of_the_scene_and_others_are_larger_or_smaller(sampler):
    for index in range(4):
        scene = sampler.scene(random.Random(index), "sign")
        assert (sign_picture(scene, 20, sampler.pack) == draw(scene, sampler.pack)).all()
        plain = draw(scene, sampler.pack)
        heights = []
        for height in LETTER_HEIGHTS_PX:
            picture = sign_picture(scene, height, sampler.pack)
            board = picture[:: 1 if scene.sign_on_top else -1][: 2 * height]
            dark = board[2:].max(axis=2) < 100
            heights.append(int(dark[: round(1.6 * height) - 4].any(axis=1).sum()))
            assert picture.shape == plain.shape
        assert heights == sorted(heights) and heights[0] == pytest.approx(8, abs=2)


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_one(one, other, third):
    distance = edit_distance(one, other)
    assert distance == edit_distance(other, one) and (distance == 0) == (one == other)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
    assert distance <= edit_distance(one, third) + edit_distance(third, other)
    assert 0 <= likeness(one, other) <= 1


def test_edit_distance_by_hand():
    assert [edit_distance(*pair) for pair in (("KITTEN", "SITTING"), ("", "ABC"), ("SIGN", "SING"))] == [3, 3, 2]
    assert likeness("HAT", "CHAT") == 0.75 and likeness("", "") == 1


def test_the_line_most_like_the_word_counts(scene):
    picture, reader = Image.new("RGB", (128, 128), "white"), Reader(" a-hat! ")
    assert read_likeness(reader, picture, replace(scene, sign="AHAT")) == 1
    assert read_likeness(reader, picture, replace(scene, sign="CHAT")) == 0.75
    assert read_likeness(reader, Image.new("RGB", (128, 128)), scene) == 0


def test_marks_are_of_rebuilt_and_true_pictures_by_height(sampler):
    sizes = []

    def rebuild(pictures):
        sizes.append(len(pictures))
        if len(sizes) == 1:
            raise RuntimeError("broken")
        return [Image.new("RGB", one.size) for one in pictures]

    marks = word_marks(rebuild, Reader(), sampler, 3, 2)
    assert [*marks] == [
        f"{group}{name}/{height}"
        for height in LETTER_HEIGHTS_PX
        for group in ("", "true_")
        for name in ("words", "letters")
    ]
    assert sizes[:4] == [2, 1, 1, 1] and not marks["words/8"].failed
    assert {*marks["letters/8"].each} == {"0", "1", "2"} and sum(marks["letters/8"].each.values()) == 0
    assert sum(marks["true_letters/8"].each.values()) > 0


def test_benchmark_has_the_model_rebuild_and_the_judge_read(sampler):
    class Forgetting:
        draw = answers = captions = print

        def rebuild(self, images):
            return [type("Drawn", (), {"image": Image.new("RGB", one.size)}) for one in images]

    judge = Judge(Finder(), Reader(), sampler.pack)
    bench = Workbench(model=Forgetting(), samples=SceneSamples(sampler), judges=(judge,))
    marks = WordBenchmark(number=1).run(bench).marks
    assert marks["letters/20"].each == {"0": 0} and marks["true_letters/20"].each["0"] > 0


class Finder:
    def detect(self, images):
        return [[] for _ in images]


def test_reconstruction_reads_signs_if_asked(tmp_path, monkeypatch, capsys):
    from rebus.tokenizers.encoders.vit import VitEncoderConfig
    from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
    from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig

    torch.manual_seed(0)
    small = {"dim": 16, "depth": 1, "num_heads": 1}
    config = ImageTokenizerConfig(encoder=VitEncoderConfig(**small), pixel_decoder=VitPixelDecoderConfig(**small))
    config.build().save(tmp_path)
    monkeypatch.setattr(reconstruction, "SignReader", Reader)
    flags = ["--image_tokenizer", str(tmp_path), "--limit", "2", "--json", "--words"]
    reconstruction.main([*flags, "2"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["letters/12"]["n"] == 2 and found["true_words/24"]["failed"] == 0
    with pytest.raises(SystemExit, match="2"):
        reconstruction.main([*flags, "-1"])
    assert "words must be at least 0, got -1" in capsys.readouterr().err.splitlines()[-1]
