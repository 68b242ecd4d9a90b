import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.data.emoji import STYLES, EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler, counted_items, item_beside_sign, two_items
from rebus.data.scenes import BACKGROUNDS, LATTICE_PX, TASKS, Item, Scene, draw, letter_shape, visible_backgrounds
from rebus.data.sign_words import sign_words

PACK = EmojiPack.open()
CONCEPTS = mini_concepts(PACK)
SAMPLER = SceneSampler(PACK, CONCEPTS, "train")


def plain(*items, background="blue", sign=None, **fields):
    return Scene(items, "flat", background, sign, "sign" if sign else "one", **fields)


def boxes_overlap(one, other):
    return abs(one.x - other.x) < one.size and abs(one.y - other.y) < one.size


@given(seed=st.integers(0, 10**6), task=st.sampled_from(TASKS))
@settings(max_examples=60, deadline=None)
def test_outside_its_boxes_a_scene_is_plain_ground(seed, task):
    scene = SAMPLER.scene(random.Random(seed), task)
    picture = draw(scene, PACK)
    covered = np.zeros((128, 128), bool)
    for item in scene.items:
        covered[item.y : item.y + item.size, item.x : item.x + item.size] = True
    if scene.sign:
        covered[slice(0, 32) if scene.sign_on_top else slice(96, 128)] = True
    assert picture.shape == (128, 128, 3) and picture.dtype == np.uint8
    assert (picture[~covered] == BACKGROUNDS[scene.background]).all()
    assert (picture != BACKGROUNDS[scene.background]).any()


@given(seed=st.integers(0, 10**6), task=st.sampled_from(TASKS))
@settings(max_examples=200, deadline=None)
def test_objects_keep_apart_and_off_the_sign(seed, task):
    scene = SAMPLER.scene(random.Random(seed), task)
    for index, item in enumerate(scene.items):
        assert not any(boxes_overlap(item, other) for other in scene.items[:index])
        assert not scene.sign or (item.y >= 32 if scene.sign_on_top else item.y + item.size <= 96)
        assert scene.background in visible_backgrounds(PACK, item.concept_id, scene.style)
    assert len(scene.items) == {"two": 2, "position": 2}.get(task, len(scene.items) if task == "count" else 1)
    assert task == scene.task and (task == "sign") == (scene.sign is not None)


def test_an_object_looks_the_same_wherever_it_stands():
    here = draw(plain(Item(CONCEPTS[10], 0, 16, 64)), PACK)
    there = draw(plain(Item(CONCEPTS[10], 48, 64, 64)), PACK)
    assert (here[16:80, :64] == there[64:128, 48:112]).all()


def test_all_letters_differ_and_fill_their_cell():
    letters = [np.asarray(letter_shape(letter)).astype(int) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    for index, letter in enumerate(letters):
        assert letter.shape == (32, LATTICE_PX)
        rows = np.flatnonzero(letter.max(axis=1) > 128)
        assert 18 <= len(rows) <= 20 and rows[0] >= 6 and letter.max() > 250
        assert all(abs(letter - other).mean() > 4 for other in letters[:index])


def test_sign_is_spelled_on_the_lattice():
    scene = plain(Item(CONCEPTS[0], 32, 0, 64), sign="ABBA")
    board = draw(scene, PACK)[96:]
    first, second, third, fourth = (board[:, left : left + 16] for left in range(32, 96, 16))
    assert (first == fourth).all() and (second == third).all() and (first != second).any()
    assert (board[8:24, :32] == 255).all() and (board[:2] == 0).all() and (board[-2:] == 0).all()
    on_top = draw(replace(scene, items=(Item(CONCEPTS[0], 32, 64, 64),), sign_on_top=True), PACK)
    assert (on_top[:32] == board).all()


@pytest.mark.parametrize("task", TASKS)
def test_a_larger_picture_shows_the_same_in_more_detail(task):
    scene = SAMPLER.scene(random.Random(3), task)
    small, large = draw(scene, PACK).astype(int), draw(scene, PACK, 2).astype(int)
    assert large.shape == (256, 256, 3)
    halved = large.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert abs(halved - small).mean() < 3
    for item in (item for item in scene.items if item.size == 64):
        sprite = PACK.sprite(item.concept_id, scene.style, 128)
        here = large[2 * item.y : 2 * item.y + 128, 2 * item.x : 2 * item.x + 128]
        opaque = sprite[..., 3] == 255
        assert opaque.any() and (here[opaque] == sprite[opaque][:, :3]).all()  # as sharp as it is stored


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_counted_items_fill_distinct_cells(count):
    for seed in range(30):
        items = counted_items(random.Random(seed), CONCEPTS[0], count)
        assert len(items) == count
        assert all(not boxes_overlap(one, other) for i, one in enumerate(items) for other in items[:i])
        assert {item.size for item in items} == {64 if count <= 4 else 32}


def test_two_items_are_in_line_and_signs_leave_room():
    rng = random.Random(0)
    for _ in range(50):
        one, other = two_items(rng, *CONCEPTS[:2])
        assert sorted((abs(one.x - other.x), abs(one.y - other.y)))[0] <= LATTICE_PX
        assert max(abs(one.x - other.x), abs(one.y - other.y)) == 64
        assert item_beside_sign(rng, CONCEPTS[0], sign_on_top=True).y >= 32


def test_backgrounds_are_well_apart_and_every_object_stands_out_on_most():
    colors = np.array(list(BACKGROUNDS.values()))
    distance = np.abs(colors[:, None] - colors).max(axis=-1) + 999 * np.eye(len(colors), dtype=int)
    assert len(colors) == 10 and distance.min() >= 70
    assert min(len(visible_backgrounds(PACK, concept, style)) for concept in CONCEPTS for style in STYLES) >= 6
    assert "pink" not in visible_backgrounds(PACK, PACK.find("flamingo").id, "flat")


def test_sign_words_are_common_and_clean():
    words = sign_words(PACK)
    assert 900 <= len(words) <= 1100 and list(words) == sorted(set(words))
    assert all(3 <= len(word) <= 7 and word.isalpha() and word.isascii() and word.isupper() for word in words)
    assert {"HOUSE", "MUSIC", "HELLO"} <= set(words) and not {"DEAD", "WEAPON", "LOL", "ALCOHOL"} & set(words)


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"x": 8}, "x must be a multiple of 16, got 8"),
        ({"size": 0}, "inside 128 px"),
        ({"y": 80}, "inside 128 px"),
        ({"x": -16}, "inside 128 px"),
    ],
)
def test_items_off_the_lattice_or_the_picture_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        Item(**({"concept_id": CONCEPTS[0], "x": 0, "y": 0, "size": 64} | fields))


@pytest.mark.parametrize(
    "fields, match",
    [
        ({"task": "three"}, "task must be one of"),
        ({"background": "beige"}, "background must be one of"),
        ({"sign": "Cat"}, "sign must be 3 to 7 capital letters, got 'Cat'"),
        ({"sign": "ELEPHANT"}, "sign must be"),
        ({"sign": "A B"}, "sign must be"),
        ({"style": "oil"}, "style must be one of"),
    ],
)
def test_impossible_scenes_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        replace(plain(Item(CONCEPTS[0], 0, 0, 64)), **fields)


def test_samplers_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="concepts must be at least 2, got 1"):
        SceneSampler(PACK, CONCEPTS[:1], "train")
    with pytest.raises(ValueError, match="one that can be counted"):
        SceneSampler(PACK, (PACK.find("fog").id, PACK.find("mount fuji").id), "train")
    with pytest.raises(ValueError, match="task must be one of"):
        SAMPLER.scene(random.Random(0), "three")


def test_a_given_thing_is_what_is_shown():
    for task in ("one", "background", "sign"):
        scene = SAMPLER.scene(random.Random(task), task, CONCEPTS[3])
        assert [item.concept_id for item in scene.items] == [CONCEPTS[3]] and scene.task == task
    with pytest.raises(ValueError, match="to show a given concept, got 'two'"):
        SAMPLER.scene(random.Random(0), "two", CONCEPTS[3])


def test_same_seed_same_scene():
    assert [SAMPLER.scene(random.Random(seed)) for seed in range(20)] == [
        SAMPLER.scene(random.Random(seed)) for seed in range(20)
    ]
