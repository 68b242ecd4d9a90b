import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of
from rebus.data.scene_sampler import SceneSampler
from rebus.data.splits import is_held_out
from rebus.evaluation.detector import SHIPPED_JUDGE, Detection, Detector, DetectorConfig, focal_loss, heat_targets
from rebus.train.damage import DamageConfig, LabelledPictures, damaged
from rebus.train.detector import DetectorStage, mini, reward, tiny

SMALL = DetectorConfig(concepts=("cat", "dog", "owl"), width=6, depth=1, image_size=32)
STILL = DamageConfig(shift_px=0.0, zoom=0.0, color=0.0, noise=0.0, num_wrong_patches=0)


def test_heat_is_one_at_centres_on_the_right_channel():
    objects = torch.tensor([[0, 2, 20, 9, 16], [1, 0, 31, 0, 32], [1, 0, 8, 31, 32]])
    heat, peaks = heat_targets(objects, num_concepts=3, num_pictures=2, num_cells=4)
    assert peaks.tolist() == [[0, 1, 2], [1, 0, 3], [1, 3, 1]]
    assert (heat == 1).nonzero().tolist() == [[0, 2, 1, 2], [1, 0, 0, 3], [1, 0, 3, 1]]
    assert heat[0, 2, 1, 1] < heat[1, 0, 0, 2] < 1  # wider for the larger object
    assert heat[0, :2].max() == 0


def test_focal_loss_by_hand():
    # One centre scored 0.8 and one cell beside it (target 0.5) scored 0.3.
    logits, heat = torch.tensor([0.8, 0.3]).logit(), torch.tensor([1.0, 0.5])
    expected = -(0.2**2 * torch.tensor(0.8).log() + 0.5**4 * 0.3**2 * torch.tensor(0.7).log())
    torch.testing.assert_close(focal_loss(logits.view(1, 1, 1, 2), heat.view(1, 1, 1, 2)), expected)


def test_peaks_become_objects_and_one_place_holds_one_object():
    detector = SMALL.build().eval()
    logits, sizes = torch.full((1, 3, 4, 4), -9.0), torch.full((1, 4, 4), 0.5)
    logits[0, 0, 0, 0] = 3.0  # a cat
    logits[0, 1, 0, 0] = 2.0  # no dog: it stands in the cat's place
    logits[0, 2, 0, 1] = 1.0  # no owl either: beside a peak
    logits[0, 2, 3, 3] = 1.0  # an owl
    logits[0, 1, 3, 0] = -2.0  # below the threshold
    detector.forward = lambda images: (logits, sizes)
    (found,) = detector.detect(torch.zeros(1, 3, 32, 32))
    assert [(one.concept_id, one.x, one.y, one.size) for one in found] == [("cat", 4, 4, 16), ("owl", 28, 28, 16)]
    assert found[0].score == pytest.approx(torch.tensor(3.0).sigmoid().item())


def test_saved_detector_is_the_same(tmp_path):
    first = SMALL.build().eval()
    first.save(tmp_path / "first")
    saved = Detector.load(tmp_path / "first")
    saved.save(tmp_path / "second")
    assert saved.config == first.config
    assert (tmp_path / "first/model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(saved(images)[0], first(images)[0], atol=0.05, rtol=0.02)


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="images must be 32 px squares, got"):
        SMALL.build().eval().detect(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match="image_size must be a multiple of 16, got 40"):
        replace(SMALL, image_size=40)
    with pytest.raises(ValueError, match="concepts must name at least one"):
        replace(SMALL, concepts=())
    with pytest.raises(ValueError, match="must hold a saved detector"):
        Detector.load(tmp_path)


def test_damage_moves_objects_with_the_picture():
    images = torch.zeros(8, 3, 128, 128)
    images[:, :, 40:57, 60:77] = 1  # centre 68, 48
    objects = torch.tensor([[row, 0, 68, 48, 17] for row in range(8)])
    damage = replace(STILL, shift_px=10.0, zoom=0.1)
    result = damaged(LabelledPictures(images, objects), damage, torch.Generator().manual_seed(1))
    weight, places = result.images[:, 0], torch.arange(128) + 0.5
    across = (weight.sum(dim=1) * places).sum(dim=1) / weight.sum(dim=(1, 2))
    down = (weight.sum(dim=2) * places).sum(dim=1) / weight.sum(dim=(1, 2))
    torch.testing.assert_close(torch.stack([across, down], dim=1), result.objects[:, 2:4].float(), atol=1.1, rtol=0)
    assert len(set(result.objects[:, 2].tolist())) > 3


def test_damage_of_every_kind_stays_in_range_and_none_leaves_sharp_pictures_alone():
    pictures = LabelledPictures(torch.rand(6, 3, 64, 64), torch.tensor([[0, 0, 32, 32, 16]]))
    generator = torch.Generator().manual_seed(0)
    worn = damaged(pictures, DamageConfig(), generator).images
    assert worn.min() >= 0 and worn.max() <= 1 and not torch.equal(worn, pictures.images)
    still = damaged(pictures, STILL, generator)
    assert torch.equal(still.objects, pictures.objects)
    changes = (still.images - pictures.images).abs().amax(dim=(1, 2, 3))
    assert (changes < 1e-4).sum() == 2  # a third is neither softened nor made small


@pytest.fixture(scope="module")
def stage():
    return DetectorStage(replace(tiny(), num_validation=8), EmojiPack.open())


def test_batches_are_pure_functions_of_the_step(stage):
    one, again, other = (stage.batch(step, 0, 2) for step in (3, 3, 4))
    assert torch.equal(one.images, again.images) and torch.equal(one.objects, again.objects)
    assert not torch.equal(one.images, other.images)
    assert len(one.images) == stage.config.run.batch_size // 2
    assert one.objects[:, 0].unique().tolist() == list(range(len(one.images)))


def test_learns_a_batch(stage, tmp_path: Path):
    torch.manual_seed(0)
    batch = stage.batch(0, 0, 1)
    optimizer = torch.optim.AdamW(stage.model.parameters(), lr=5e-3)
    stage.model.train()
    for _ in range(30):
        loss, terms = stage.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms["focal"] < 0.5 and terms["size"] < 0.1
    stage.model.eval()
    found = stage.model.detect(batch.images)
    true = batch.objects[:, 0].bincount().tolist()
    assert sum(len(objects) == number for objects, number in zip(found, true, strict=True)) >= 12
    assert all(isinstance(one, Detection) for objects in found for one in objects)
    assert set(stage.validate()) == {"exact", "exact_damaged"}
    stage.samples(tmp_path)
    assert (tmp_path / "found.png").stat().st_size > 1000
    stage.export(tmp_path / "judge")
    assert Detector.load(tmp_path / "judge").concepts == stage.config.detector.concepts


def test_mini_judge_is_small():
    model = mini().detector.build()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000


def test_the_shipped_judge_counts_held_out_scenes():
    pack, judge = EmojiPack.open(), Detector.load(SHIPPED_JUDGE)
    sampler = SceneSampler(pack, mini_concepts(pack), "held_out")
    assert set(sampler.concepts) <= set(judge.concepts)
    scenes = [sampler.scene(random.Random(row), "count") for row in range(16)]
    found = judge.detect(pictures_of(scenes, pack) / 255)
    right = [
        [one.concept_id for one in objects] == [item.concept_id for item in scene.items]
        for objects, scene in zip(found, scenes, strict=True)
    ]
    assert sum(right) >= 15


@pytest.mark.slow
def test_a_detector_that_teaches_sees_nothing_that_is_held_out(stage):
    teacher = DetectorStage(replace(stage.config, teacher=True), stage.pack)
    for one, some in ((teacher, False), (stage, True)):
        scenes = [one._scene(random.Random(row)) for row in range(16)]
        assert any(map(is_held_out, scenes)) == some
    assert (
        reward().teacher and reward().run.seed != mini().run.seed and reward().detector.width != mini().detector.width
    )
