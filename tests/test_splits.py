import random
import re
from itertools import combinations

import numpy as np
import pytest

from rebus.data import scene_text
from rebus.data.emoji import STYLES, EmojiPack
from rebus.data.english import NUMBER_WORDS
from rebus.data.mini_concepts import mini_concepts, other_concepts
from rebus.data.samples import Picture
from rebus.data.scene_edits import EDIT_TASKS
from rebus.data.scene_sampler import HELD_OUT_FACT, SceneSampler
from rebus.data.scene_text import CHAT_WEIGHTS, DRILL_OTHERS_RATE, OTHERS_RATE, SceneSamples
from rebus.data.scenes import BACKGROUNDS, TASKS, Item, Scene
from rebus.data.sign_words import sign_words
from rebus.data.splits import (
    COUNTS,
    held_out_cell,
    held_out_count,
    held_out_facts,
    held_out_pair,
    held_out_word,
    is_held_out,
)

PACK = EmojiPack.open()
ALL = tuple(PACK.concepts)
MINI = mini_concepts(PACK)
OTHERS = other_concepts(PACK)


@pytest.fixture
def drawn(monkeypatch):
    """Every scene that a sample shows, in place of its pixels."""
    scenes = []

    def remember(scene, pack):
        scenes.append(scene)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(scene_text, "draw", remember)
    return scenes


def test_shares_of_what_is_held_out():
    assert np.mean([held_out_cell(a, style) for a in ALL for style in STYLES]) == pytest.approx(0.1, abs=0.01)
    assert np.mean([held_out_count(a, count) for a in ALL for count in COUNTS]) == pytest.approx(0.1, abs=0.01)
    assert np.mean([held_out_pair(a, b) for a, b in combinations(ALL[:150], 2)]) == pytest.approx(0.1, abs=0.01)
    assert np.mean([held_out_word(word) for word in sign_words(PACK)]) == pytest.approx(0.15, abs=0.04)


def test_every_concept_keeps_most_styles_and_counts():
    assert max(sum(held_out_cell(a, style) for style in STYLES) for a in ALL) == 1
    assert max(sum(held_out_count(a, count) for count in COUNTS) for a in ALL) == 1
    assert not any(held_out_count(a, count) for a in ALL for count in (1, 7))


def test_rules_never_change():
    held_out = [label for label in ("cat", "drum", "owl", "bus", "tent", "pig") for style in STYLES
                if held_out_cell(PACK.find(label).id, style)]  # fmt: skip
    words = [word for word in ("HELLO", "FISH", "RED", "BEAR", "LOVE", "STAR", "LION", "ROCKET") if held_out_word(word)]
    counts = [
        count
        for label in ("cat", "owl", "key", "bus")
        for count in COUNTS
        if held_out_count(PACK.find(label).id, count)
    ]
    assert (held_out, words, counts) == GOLDEN


GOLDEN = (["drum"], ["FISH"], [4])


def test_pairs_have_no_order():
    assert all(held_out_pair(a, b) == held_out_pair(b, a) for a, b in combinations(MINI[:30], 2))


def test_facts_of_a_scene_are_found():
    a, b = next(pair for pair in combinations(MINI, 2) if held_out_pair(*pair))
    style = next(style for style in STYLES if not held_out_cell(a, style) and not held_out_cell(b, style))
    scene = Scene((Item(a, 0, 0, 64), Item(b, 64, 0, 64)), style, "white", None, "two")
    assert held_out_facts(scene) == {"pair"} and is_held_out(scene)
    assert not is_held_out(Scene((Item(a, 0, 0, 64),), style, "white", None, "one"))


@pytest.mark.parametrize("concepts, num_scenes", [(MINI, 2000), (ALL, 60)], ids=["mini", "all"])
def test_training_scenes_show_nothing_held_out(concepts, num_scenes):
    sampler, rng = SceneSampler(PACK, concepts, "train"), random.Random(0)
    assert not any(is_held_out(sampler.scene(rng)) for _ in range(num_scenes))


def training_samples(**more_chats):
    others = SceneSampler(PACK, OTHERS, "train")
    return SceneSamples(SceneSampler(PACK, MINI, "train"), others, {**CHAT_WEIGHTS, **more_chats})


def test_training_samples_show_nothing_held_out(drawn):
    samples, rng = training_samples(drill=0.5), random.Random(0)
    texts = []
    for _ in range(800):
        for sample in (samples.document(rng), samples.chat(rng)):
            texts += [part for message in sample.messages for part in message.parts if not isinstance(part, Picture)]
            texts += [part for pair in sample.asked for part in pair]
    drawn += [change.scene for kind in EDIT_TASKS for _ in range(50) for change in samples.edit(rng, kind)[1:]]
    assert len(drawn) > 2000 and not any(is_held_out(scene) for scene in drawn)
    words = set(re.findall(r'"([A-Z]+)"|\b([A-Z]{3,7})\b', " ".join(texts)))
    assert len(words) > 100 and not any(held_out_word(word) for pair in words for word in pair if word)
    assert {scene.task for scene in drawn} == set(TASKS)


def test_questions_by_themselves_are_about_other_things_without_their_names(drawn):
    samples, rng = training_samples(**dict.fromkeys(CHAT_WEIGHTS, 0.0), drill=1.0), random.Random(0)
    answers = {"3D", "flat", "Noto", *BACKGROUNDS, *NUMBER_WORDS}
    num_asked = 0
    for _ in range(400):
        drawn.clear()
        chat = samples.chat(rng)
        (scene,) = drawn
        if any(item.concept_id in OTHERS for item in scene.items):
            num_asked += 1
            assert {answer for _, answer in chat.asked} <= answers | {scene.sign}
    assert abs(num_asked / 400 - DRILL_OTHERS_RATE) < 0.06


def test_other_things_are_only_asked_about_and_never_by_name(drawn):
    samples, rng = training_samples(), random.Random(0)
    answers = {"3D", "flat", "Noto", *BACKGROUNDS, *NUMBER_WORDS}
    num_asked = 0
    for _ in range(800):
        drawn.clear()
        chat = samples.chat(rng)
        if any(item.concept_id in OTHERS for scene in drawn for item in scene.items):
            num_asked += 1
            (scene,) = drawn
            said = [part for message in chat.messages[1::2] for part in message.parts]
            assert said and set(said) <= answers | {scene.sign}
    assert len(OTHERS) > 800 and not set(OTHERS) & set(MINI)
    assert abs(num_asked / 800 - CHAT_WEIGHTS["questions"] * OTHERS_RATE) < 0.06


@pytest.mark.parametrize("task", TASKS)
def test_held_out_scenes_show_what_their_task_holds_out_and_nothing_else(task):
    sampler, rng = SceneSampler(PACK, MINI, "held_out"), random.Random(0)
    for _ in range(40):
        assert held_out_facts(sampler.scene(rng, task)) == {HELD_OUT_FACT[task]}


def test_held_out_samples_always_show_something_held_out(drawn):
    samples, rng = SceneSamples(SceneSampler(PACK, MINI, "held_out")), random.Random(0)
    for _ in range(60):
        drawn.clear()
        samples.document(rng)
        assert any(is_held_out(scene) for scene in drawn)
        assert is_held_out(samples.prompt(rng)[0]) and is_held_out(samples.edit(rng)[0])


def test_a_scene_that_cannot_be_is_refused():
    legal = next(pair for pair in combinations(MINI, 2) if not held_out_pair(*pair))
    with pytest.raises(ValueError, match="concepts must allow a held_out scene of task 'two', got 2 concepts"):
        SceneSampler(PACK, legal, "held_out").scene(random.Random(0), "two")
