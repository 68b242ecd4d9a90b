"""A predictor of aesthetics of the user's own as a reward: a tiny CLIP and heads of random weights."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from rebus.train.rewards.aesthetics import HEAD, AestheticsRewardConfig, clip_pixels
from rebus.train.rewards.choice import RewardsConfig
from rebus.train.rewards.scoring import Scorer

SIZES = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE, DIM = 14, 6


def laion(width=1024, names=(0, 2, 4, 6, 7)):
    """LAION's head by its names: what is dropped in training has a number, too."""
    torch.manual_seed(1)
    layers = zip(names, itertools.pairwise((DIM, width, 128, 64, 16, 1)), strict=True)
    parts = {f"layers.{name}": nn.Linear(*sizes).state_dict() for name, sizes in layers}
    return {f"{name}.{each}": weight for name, part in parts.items() for each, weight in part.items()}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """The folder of a whole CLIP without a head."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {**SIZES, "image_size": SIDE, "patch_size": 7, "projection_dim": DIM}
    text = {**SIZES, "vocab_size": 7, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 5}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=DIM)
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tower, tmp_path):
    """A folder with the tower, for a head to be put beside it."""
    for path in tower.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def noisy(*size, seed=0):
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(14, 14), (128, 128), (40, 23), (9, 31)])
def test_pictures_are_seen_as_by_the_processor_of_transformers(size):
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    expected = transformers.CLIPImageProcessorPil(**sizes)(images=[noisy(*size)], return_tensors="pt").pixel_values
    assert torch.allclose(clip_pixels(noisy(*size), SIDE), expected[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["five layers", "one layer"])
def test_a_rating_is_a_tenth_of_what_the_head_says_of_the_embedding_of_clip(kind, tower, folder):
    weights = laion() if kind == "five layers" else dict(nn.Linear(DIM, 1).state_dict())
    save_file(weights, folder / HEAD)
    pictures = [noisy(31, 20, seed=seed) for seed in range(3)]
    ratings = AestheticsRewardConfig(folder=folder).build()(["a cat"] * 3, pictures)
    with torch.no_grad():
        pixels = torch.stack([clip_pixels(picture, SIDE) for picture in pictures])
        value = transformers.CLIPModel.from_pretrained(tower).get_image_features(pixel_values=pixels)
        value = getattr(value, "pooler_output", value)  # newer versions tell more
        value = value / value.norm(dim=-1, keepdim=True)
        names = ["layers.0", "layers.2", "layers.4", "layers.6", "layers.7"] if kind == "five layers" else [""]
        for name in names:
            prefix = f"{name}." if name else ""
            value = value @ weights[f"{prefix}weight"].T + weights[f"{prefix}bias"]
    assert ratings == pytest.approx((value.squeeze(1) / 10).tolist(), rel=1e-4)
    assert len(set(ratings)) == 3 and all(math.isfinite(one) for one in ratings)


def test_a_picture_that_cannot_be_seen_is_counted_and_the_others_are_rated(folder):
    save_file(laion(), folder / HEAD)
    rewards = RewardsConfig(aesthetics=AestheticsRewardConfig(folder=folder, weight=2.0), workers=0)
    told = Scorer(rewards.chosen(), 0).start(["a"] * 3, [noisy(20, 20), Image.new("RGB", (0, 9)), noisy(9, 9)], {})
    scores = told.scores()
    assert [math.isfinite(total) for total in scores.totals] == [True, False, True]
    assert scores.problems.total() == 1 and next(iter(scores.problems)).startswith("aesthetics: ")


def test_what_is_missing_or_does_not_fit_is_named(folder, tmp_path):
    def told(match, path=folder):
        with pytest.raises(ValueError, match=match):
            Scorer({"aesthetics": AestheticsRewardConfig(folder=path)}, 0)

    told(f"must be a folder with CLIP and {HEAD}, got .*none", tmp_path / "none")
    told(f"{HEAD} must hold the head of the aesthetics predictor, got no such file")
    (folder / HEAD).write_bytes(b"pickle")
    told(f"{HEAD} must be a file of safetensors, got")
    save_file(laion(names=(0, 3, 6, 9, 11)), folder / HEAD)  # with ReLU in between
    told("fit LAION's head for embeddings of 6 numbers, got missing: layers.2.bias, .*; unexpected: layers.11.bias, ")
    save_file(laion(width=1000), folder / HEAD)
    told("of another shape: layers.0.bias, layers.0.weight, layers.2.weight$")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    told("must hold a model of transformers", folder)
    config["vision_config"]["hidden_size"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    told("must hold a model of transformers with weights that fit")
    with pytest.raises(ValueError, match="weight must be positive and finite, got 0.0"):
        AestheticsRewardConfig(folder=folder, weight=0.0)
