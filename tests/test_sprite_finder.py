"""The judge that learned nothing: that it names the objects of scenes, true and worn, and that no reward can use it."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import BACKGROUNDS, TASKS, Item, Scene
from rebus.evaluation.sprite_finder import SpriteFinder
from rebus.train.damage import DamageConfig, LabelledPictures, damaged


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture(scope="module")
def finder(pack):
    return SpriteFinder(pack, mini_concepts(pack))


@pytest.fixture(scope="module")
def scenes(pack):
    sampler = SceneSampler(pack, mini_concepts(pack), "held_out")
    return [sampler.scene(random.Random(f"sprites/{row}"), TASKS[row % len(TASKS)]) for row in range(36)]


def num_exact(finder, scenes, images):
    """In how many pictures are found the objects of their scenes and no others?"""
    return sum(
        Counter(one.concept_id for one in found) == Counter(item.concept_id for item in scene.items)
        for found, scene in zip(finder.detect(images), scenes, strict=True)
    )


def test_objects_of_held_out_scenes_are_found_exactly(finder, pack, scenes):
    assert num_exact(finder, scenes, pictures_of(scenes, pack) / 255) >= 0.97 * len(scenes)


def test_objects_of_worn_pictures_are_found(finder, pack, scenes):
    worn = damaged(
        LabelledPictures(pictures_of(scenes[:12], pack) / 255, torch.zeros(1, 5, dtype=torch.long)),
        DamageConfig(num_wrong_patches=0),
        torch.Generator().manual_seed(0),
    )
    assert num_exact(finder, scenes[:12], worn.images) >= 11


def test_places_sizes_and_order(finder, pack):
    items = Item(pack.find("cat").id, 0, 16, 64), Item(pack.find("pizza").id, 96, 96, 32)
    scene = Scene(items, "flat", "blue", None, "two")
    (found,) = finder.detect(pictures_of([scene], pack) / 255)
    assert [(one.concept_id, one.x, one.y, one.size) for one in found] == [
        (items[0].concept_id, 32.0, 48.0, 64.0),  # the larger explains more
        (items[1].concept_id, 112.0, 112.0, 32.0),
    ]
    assert all(0.95 < one.score <= 1 for one in found)


@pytest.mark.parametrize("ground", ["white", "black", "pink"])
def test_grounds_and_signs_are_no_objects(finder, pack, ground):
    cat = Item(pack.find("cat").id, 32, 32, 64)
    for sign_on_top in (True, False):
        scene = Scene((cat,), "noto", ground, "WINDOW", "sign", sign_on_top)
        (found,) = finder.detect(pictures_of([scene], pack) / 255)
        assert [one.concept_id for one in found] == [cat.concept_id]
    plain = torch.tensor(BACKGROUNDS[ground])[None, :, None, None].expand(1, 3, 128, 128) / 255
    assert finder.detect(plain) == [[]]


def test_errors_say_what_is_wrong(finder, pack):
    with pytest.raises(ValueError, match="images must be scenes of 128 px, got"):
        finder.detect(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="concepts must name at least one concept, got none"):
        SpriteFinder(pack, ())


def test_nothing_is_trained_with_it():
    trained = (Path(__file__).parent.parent / "train").rglob("*.py")
    assert not [path for path in trained if "sprite_finder" in path.read_text(encoding="utf-8")]
