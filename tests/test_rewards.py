"""Rewards of rendered pictures: that each says what it should, and that failures stay their picture's own."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import draw
from rebus.evaluation.detector import SHIPPED_JUDGE, Detection, DetectorConfig
from rebus.model.rebus import Rebus
from rebus.train.rewards import scoring
from rebus.train.rewards.reading import ReadingRewardConfig
from rebus.train.rewards.scene_objects import ObjectsRewardConfig, agreement
from rebus.train.rewards.scoring import Scorer
from rebus.train.rewards.sign_text import SignRewardConfig, read_sign, sign_reward


@pytest.fixture(scope="module")
def samples():
    pack = EmojiPack.open()
    return SceneSamples(SceneSampler(pack, mini_concepts(pack), "train"))


def asked(samples, task, number=1):
    """Scenes of a task, their prompts, and true pictures of them."""
    pairs = [samples.prompt(random.Random(f"{task}/{index}"), task) for index in range(number)]
    scenes, prompts = (list(one) for one in zip(*pairs, strict=True))
    return scenes, prompts, [Image.fromarray(draw(scene, samples.pack)) for scene in scenes]


def worn(picture, rng):
    """A picture moved by a pixel, noisy and less contrasted, as a painter might leave it."""
    pixels = np.roll(np.asarray(picture).astype(np.float32), rng.integers(-1, 2, size=2), axis=(0, 1))
    pixels = pixels * 0.8 + 25 + rng.normal(0, 15, size=pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_signs_are_read_even_if_they_are_worn(samples):
    scenes, prompts, pictures = asked(samples, "sign", 12)
    assert [read_sign(picture) for picture in pictures] == [scene.sign for scene in scenes]
    rng = np.random.default_rng(0)
    marks = sign_reward(prompts, [worn(picture, rng) for picture in pictures], scene=scenes)
    assert sum(mark == 1 for mark in marks) >= 11


def test_a_wrong_letter_costs_its_share_and_no_sign_all(samples):
    (scene,), prompts, (picture,) = asked(samples, "sign")
    scene = replace(scene, sign="HOUSE")
    for drawn, mark in (("HOUSE", 1.0), ("HORSE", 0.8), ("MMM", 0.0), (None, 0.0)):
        picture = Image.fromarray(draw(replace(scene, sign=drawn), samples.pack))
        assert sign_reward(prompts, [picture], scene=[scene]) == [mark]
    assert sign_reward(prompts, [picture], scene=[replace(scene, sign=None)]) == [None]
    with pytest.raises(ValueError, match=r"must be a scene of 128 px to have its sign read, got \(24, 24\)"):
        read_sign(Image.new("RGB", (24, 24)))


def found(scene):
    return [
        Detection(item.concept_id, item.x + item.size / 2, item.y + item.size / 2, float(item.size), 0.9)
        for item in scene.items
    ]


def test_what_is_there_and_stands_where_it_should_is_rewarded_in_shares(samples):
    for task in ("one", "two", "count", "background", "sign", "position"):
        (scene,), _, (picture,) = asked(samples, task)
        assert agreement(scene, np.asarray(picture), found(scene), 0.5) == 1
    first, second = found(scene)  # of the two that stand somewhere
    swapped = [replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)]
    pixels = np.asarray(picture)
    assert agreement(scene, pixels, swapped, 0.5) == pytest.approx(2 / 3)
    assert agreement(scene, pixels, [first], 0.0) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert agreement(scene, pixels, [first], 0.5) == pytest.approx((1 / 3 + 1 + 0) / 3)  # half is for all or nothing
    assert agreement(scene, pixels, [first, second, first], 0.0) == pytest.approx((4 / 5 + 1 + 1) / 3)
    other = replace(scene, background="red" if scene.background != "red" else "blue")
    assert agreement(other, pixels, [first, second], 0.5) == pytest.approx(2 / 3)


def test_the_judge_is_refused_as_a_reward(tmp_path, samples):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((SHIPPED_JUDGE / name).read_bytes())  # under another name, too
    for folder in (SHIPPED_JUDGE, tmp_path):
        with pytest.raises(ValueError, match="detector must be another than the judge that reports"):
            Scorer({"objects": ObjectsRewardConfig(detector=folder)}, 0)
    with pytest.raises(ValueError, match="detector must be the folder of a trained detector"):
        Scorer({"objects": ObjectsRewardConfig(detector=tmp_path / "none")}, 0)
    with pytest.raises(ValueError, match=r"exact must be in \[0, 1\], got 2"):
        ObjectsRewardConfig(detector=tmp_path, exact=2.0)
    with pytest.raises(ValueError, match="weight must be positive and finite, got 0.0"):
        SignRewardConfig(weight=0.0)
    with pytest.raises(ValueError, match="rewards must be at least one, got none"):
        Scorer({}, 0)


def test_a_detector_of_its_own_sees_the_pictures(tmp_path, samples):
    torch.manual_seed(0)
    DetectorConfig(concepts=samples.sampler.concepts, width=6, depth=1).build().save(tmp_path)
    config = ObjectsRewardConfig(detector=tmp_path)
    config.check()
    scenes, prompts, pictures = asked(samples, "background", 2)
    marks = config.build()(prompts, pictures, scene=scenes)
    assert len(marks) == 2 and all(mark is not None and 0.5 <= mark <= 1 for mark in marks)  # the ground is right


def test_the_model_reads_the_prompt_in_the_rendered_picture(saved_model):
    config = ReadingRewardConfig(model=saved_model)
    config.check()
    reader = Rebus.load(saved_model)
    pictures = [Image.new("RGB", (24, 24), color) for color in ("red", "white")]
    prompts = ["a cat", "two dogs"]
    marks = config.build()(prompts, pictures)
    for prompt, picture, mark in zip(prompts, pictures, marks, strict=True):
        (alone,) = config.build()([prompt], [picture])
        assert 0 < mark < 1 and alone == pytest.approx(mark, rel=1e-4)
        assert reader.look(picture).tokens is not None
    with pytest.raises(ValueError, match="must be the folder of a saved model"):
        ReadingRewardConfig(model=saved_model / "none").check()


@dataclass(frozen=True, kw_only=True)
class RednessConfig:
    """Rewards red; fails on black, says nothing of prompts that ask for nothing, and is infinite for white."""

    weight: float = 1.0

    def check(self):
        pass

    def build(self):
        CALLS.clear()
        return self

    def __call__(self, prompts, completions, **columns):
        CALLS.append(len(prompts))
        rows = zip(prompts, completions, columns["scene"], strict=True)
        return [self._mark(*row) for row in rows]

    def _mark(self, prompt, picture, scene):
        red, green, _ = picture.getpixel((0, 0))
        if not red:
            raise KeyError("black")
        assert scene == f"scene of {prompt}"
        return None if prompt == "nothing" else math.inf if green else red / 255


CALLS = []


def colored(*colors):
    return [Image.new("RGB", (2, 2), color) for color in colors]


def scores(scorer, prompts, pictures):
    return scorer.start(prompts, pictures, {"scene": [f"scene of {prompt}" for prompt in prompts]}).scores()


def test_rewards_are_weighted_and_what_fails_fails_alone():
    scorer = Scorer({"red": RednessConfig(weight=2.0), "also": RednessConfig()}, 0)
    told = scores(scorer, ["a", "b", "c", "nothing"], colored((255, 0, 0), "black", "white", (51, 0, 0)))
    assert told.totals[0] == 3 and all(math.isnan(one) for one in told.totals[1:])
    assert told.each["red"][0] == 1 and told.each["red"][3] is None
    assert told.problems == {
        "red: KeyError: 'black'": 1,
        "also: KeyError: 'black'": 1,
        "red: must be finite, got inf": 1,
        "also: must be finite, got inf": 1,
    }


def test_the_same_picture_for_the_same_prompt_is_looked_at_once(monkeypatch):
    scorer = Scorer({"red": RednessConfig()}, 0)
    red, dark = colored((255, 0, 0), (51, 0, 0))
    assert scores(scorer, ["a", "a", "b", "a"], [red, red, red, dark]).totals == [1, 1, 1, 0.2]
    assert CALLS == [3]
    assert scores(scorer, ["a", "c"], [dark, dark]).totals == [0.2, 0.2] and CALLS == [3, 1]
    scores(scorer, ["d"], colored("black"))  # what failed is tried again
    scores(scorer, ["d"], colored("black"))
    assert CALLS == [3, 1, 1, 1]
    monkeypatch.setattr(scoring, "MOST_REMEMBERED", 2)
    assert scores(scorer, ["e"], [dark]).totals == [0.2] and len(scorer._known) == 2


@pytest.mark.slow
def test_processes_of_their_own_give_the_same(samples):
    scenes, prompts, pictures = asked(samples, "sign", 5)
    rewards = {"sign": SignRewardConfig(weight=0.5)}
    scorer = Scorer(rewards, 2)
    pictures[3] = Image.new("RGB", (3, 3))
    told = scorer.start(prompts, pictures, {"scene": scenes}).scores()
    scorer.close()
    assert told.totals[:3] == [0.5] * 3 and math.isnan(told.totals[3]) and told.problems.total() == 1
    here = Scorer(rewards, 0).start(prompts, pictures, {"scene": scenes}).scores()
    np.testing.assert_equal(here.each, told.each)
