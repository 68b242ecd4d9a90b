import sys

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.evaluation.perceptual import efficientnet_lite0, perceptual_distance


@pytest.fixture(scope="module")
def pictures():
    pack = EmojiPack.open()
    return pictures_of(scene_rows(SceneSampler(pack, mini_concepts(pack), "train"), 6, seed=0, step=0), pack) / 255


def test_the_distance_is_that_of_directions():
    one, other = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    one[:, 0], other[0, 0], other[1, 1] = 2.0, 5.0, 0.5  # the same direction, and one at a right angle

    def network(images):
        return [images, images.mean(dim=(2, 3), keepdim=True)]

    assert perceptual_distance(one, other, network).tolist() == pytest.approx([0, 2])


def test_worse_pictures_are_further_away(pictures):
    network = efficientnet_lite0()
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    means = [perceptual_distance(pictures, pictures + scale * noise, network).mean() for scale in (0, 0.02, 0.1, 0.4)]
    assert means[0] == 0 and means == sorted(means) and means[-1] > 2 * means[1]
    other_scenes = perceptual_distance(pictures, pictures.roll(1, dims=0), network)
    assert (other_scenes > means[1]).all()


def test_a_blur_is_worse_than_a_shade_that_costs_as_much(pictures):
    """What pixel errors do not tell."""
    blurred = torch.nn.functional.avg_pool2d(pictures, 7, stride=1, padding=3, count_include_pad=False)
    error = (blurred - pictures).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    shaded = pictures - error
    network = efficientnet_lite0()
    assert (perceptual_distance(pictures, blurred, network) > perceptual_distance(pictures, shaded, network)).all()


def test_without_its_package_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"pip install 'rebus-lm\[evaluation\]'"):
        efficientnet_lite0()
