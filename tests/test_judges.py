import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.data.captions import canonical_caption, caption, description
from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import BACKGROUNDS, TASKS, Item, Scene, draw
from rebus.evaluation.answer_benchmark import normalized
from rebus.evaluation.caption_facts import CaptionReader, scene_facts
from rebus.evaluation.detector import Detection
from rebus.evaluation.intervals import wilson
from rebus.evaluation.judges import Judge, background_color
from rebus.evaluation.sign_reader import SignReader

SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(("train", "held_out"))


@cache
def pack():
    return EmojiPack.open()


@cache
def sampler(split):
    return SceneSampler(pack(), mini_concepts(pack()), split)


def objects_of(scene):
    return [
        Detection(one.concept_id, one.x + one.size / 2, one.y + one.size / 2, float(one.size), 0.9)
        for one in scene.items
    ]


class Oracle:
    """Sees what stands in the scenes, whatever the pictures."""

    def __init__(self, *scenes):
        self.scenes = scenes

    def detect(self, images):
        return [objects_of(scene) for scene in self.scenes]

    def read(self, picture):
        word = self.scenes[0].sign
        return [] if word is None else [f"{word.lower()}."]


def verdict(asked, drawn):
    oracle = Oracle(drawn)
    (result,) = Judge(oracle, oracle, pack()).verdicts([asked], draw(drawn, pack())[None])
    return result


@given(SEEDS, st.sampled_from(TASKS), SPLITS)
@settings(max_examples=15, deadline=None)
def test_true_pictures_pass(seed, task, split):
    scene = sampler(split).scene(random.Random(seed), task)
    assert verdict(scene, scene).passed


def scene_of(*labels, task="two", sign=None, across=True):
    places = [(0, 32), (64, 32)] if across else [(32, 0), (32, 64)]
    items = [Item(pack().find(label).id, *place, 64) for label, place in zip(labels, places, strict=False)]
    return Scene(tuple(items), "flat", "pink", sign, task)


def test_a_missing_object_fails_and_an_extra_one_does_not():
    both = scene_of("cat", "bus")
    assert not verdict(both, scene_of("cat")).passed
    assert not verdict(both, scene_of("cat", "owl")).passed
    assert verdict(scene_of("cat", task="one"), both).passed
    assert not verdict(scene_of("owl", task="one"), both).passed
    assert verdict(both, scene_of("cat")).seen == "a cat"


def test_counts_must_be_exact_and_alone():
    def cats(number, *others):
        cells = [(0, 0), (64, 0), (0, 64), (64, 64)]
        labels = ["cat"] * number + list(others)
        items = [Item(pack().find(label).id, *cell, 48) for label, cell in zip(labels, cells, strict=False)]
        return Scene(tuple(items), "3d", "white", None, "count")

    assert verdict(cats(3), cats(3)).passed
    assert verdict(cats(3), cats(2)).seen == "two cats"
    assert not verdict(cats(3), cats(2)).passed
    assert not verdict(cats(3), cats(4)).passed
    assert not verdict(cats(3), cats(3, "bus")).passed


@pytest.mark.parametrize("across", [True, False])
def test_positions_must_be_as_asked(across):
    asked = scene_of("cat", "bus", task="position", across=across)
    assert verdict(asked, asked).passed
    assert not verdict(asked, scene_of("bus", "cat", across=across)).passed
    assert not verdict(asked, scene_of("cat", "bus", across=not across)).passed
    assert not verdict(asked, scene_of("cat", across=across)).passed
    mirrored = replace(asked, items=asked.items[::-1])  # the prompt may name the right one first
    assert verdict(mirrored, asked).passed


def test_backgrounds_must_be_nearest_to_the_asked_color():
    asked = replace(scene_of("cat", task="background"), background="red")
    assert verdict(asked, replace(scene_of("bus"), background="red")).passed  # the object is no part of this fact
    result = verdict(asked, replace(scene_of("cat"), background="orange"))
    assert (result.passed, result.seen) == (False, "orange background")


@given(st.sampled_from(tuple(BACKGROUNDS)), SEEDS)
@settings(max_examples=20, deadline=None)
def test_background_is_found_around_objects_and_under_noise(color, seed):
    picture = np.full((128, 128, 3), BACKGROUNDS[color], dtype=np.int16)
    picture[8:120, 8:120] = 0
    noise = np.random.default_rng(seed).integers(-12, 13, picture.shape)
    noisy = (picture + noise).clip(0, 255).astype(np.uint8)
    assert background_color(noisy, [Detection("cat", 64.0, 64.0, 112.0, 1.0)]) == color
    assert background_color(noisy, [Detection("cat", 64.0, 64.0, 200.0, 1.0)]) == color  # all covered: the rim


def test_signs_must_say_exactly_the_word():
    asked = scene_of("cat", task="sign", sign="PIZZA")
    assert verdict(asked, asked).passed
    assert verdict(asked, replace(asked, sign="PIZZAS")).seen == "reads PIZZAS"
    for other in ("PIZZAS", "PIZA", None):
        assert not verdict(asked, replace(asked, sign=other)).passed


def test_the_reader_reads_our_signs():
    scene = replace(scene_of("cat", task="sign"), sign="GARDEN")
    assert SignReader().read(draw(scene, pack())) == ["GARDEN"]


def test_a_missing_reader_names_the_extra(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("rebus.evaluation.sign_reader.import_module", missing)
    with pytest.raises(ValueError, match=r"pip install 'rebus-lm\[evaluation\]'"):
        SignReader()


@given(SEEDS, st.sampled_from(TASKS), SPLITS)
@settings(max_examples=60, deadline=None)
def test_every_caption_states_facts_of_its_scene(seed, task, split):
    rng = random.Random(seed)
    scene = sampler(split).scene(rng, task)
    reader, facts = CaptionReader(pack(), sampler(split).concepts), scene_facts(scene)
    assert reader.facts(description(scene, pack())) == facts
    unsaid = {fact for fact in facts if fact[0] == "relation" and task == "two"}
    assert reader.facts(canonical_caption(scene, pack())) == facts - unsaid
    full = caption(scene, rng, pack(), style_rate=1.0, background_rate=1.0)
    assert reader.facts(f"{full[0].upper()}{full[1:]}.") == facts - unsaid
    stated = reader.facts(caption(scene, rng, pack(), style_rate=0.0, background_rate=0.0))
    assert stated == {fact for fact in facts - unsaid if fact[0] not in ("style", "background") or task == fact[0]}


def test_captions_of_all_concepts_are_read():
    everything = SceneSampler(pack(), tuple(pack().concepts), "train")
    reader, rng = CaptionReader(pack(), everything.concepts), random.Random(0)
    for _ in range(60):
        scene = everything.scene(rng)
        assert reader.facts(description(scene, pack())) == scene_facts(scene)


def test_wrong_captions_lose_facts():
    reader = CaptionReader(pack(), mini_concepts(pack()))
    scene = scene_of("cat", "house", task="position")
    right = scene_facts(scene)
    assert reader.facts("a house to the right of a cat on a pink background, in flat style") == right
    assert len(right - reader.facts("a house to the left of a cat on a pink background, in flat style")) == 1
    assert len(right - reader.facts("a cat to the left of a house on a red background, in 3D style")) == 2
    assert len(right - reader.facts("two cats to the left of a house on a pink background, in flat style")) == 1
    assert reader.facts("a cat to the left of a house on a pink background background, in flat style") == frozenset()
    assert reader.facts("") == frozenset()


def test_answers_are_compared_without_article_case_and_points():
    assert normalized(" An owl.") == normalized("owl") == "owl"
    assert normalized("PIZZA!") == normalized("pizza")
    assert normalized("two") != normalized("three")


def test_wilson_interval_by_hand():
    score = wilson([True] * 8 + [False] * 2)
    assert (score.score, score.n) == (0.8, 10)
    assert (score.low, score.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson([True] * 10).high == pytest.approx(1.0) and wilson([False] * 10).low == 0.0
    assert wilson([0.5, 0.75, 1.0]).score == 0.75


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=50)
def test_wilson_interval_holds_the_score_and_narrows(marks):
    one, many = wilson(marks), wilson(marks * 4)
    assert 0 <= one.low <= one.score + 1e-9 and one.score - 1e-9 <= one.high <= 1
    assert many.high - many.low < one.high - one.low


@pytest.mark.parametrize(("marks", "message"), [([], "at least one"), ([0.5, 1.5], "in \\[0, 1\\], got 0.5 to 1.5")])
def test_wilson_errors(marks, message):
    with pytest.raises(ValueError, match=message):
        wilson(marks)
