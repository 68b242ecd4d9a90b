import pytest
import torch
from einops import rearrange

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.patch_transform import cosine_basis


def test_the_basis_is_orthonormal_and_begins_with_the_mean_brightness():
    basis = cosine_basis(4, 48)
    torch.testing.assert_close(basis @ basis.T, torch.eye(48))
    torch.testing.assert_close(basis[0], torch.full((48,), 48**-0.5))
    assert torch.equal(cosine_basis(4, 7), basis[:7])


def test_more_vectors_than_values_are_refused():
    with pytest.raises(ValueError, match=r"number must be in 1..48 for patches of 4 px, got 49"):
        cosine_basis(4, 49)


def test_the_first_vectors_hold_most_of_a_real_scene():
    pack = EmojiPack.open()
    scenes = scene_rows(SceneSampler(pack, mini_concepts(pack), "train"), 16, seed=0, step=0)
    patches = rearrange(pictures_of(scenes, pack) / 127.5 - 1, "b c (h p) (w q) -> (b h w) (c p q)", p=16, q=16)
    coefficients = patches @ cosine_basis(16, 96).T
    assert coefficients.square().sum() > 0.95 * patches.square().sum()


def test_a_fresh_tokenizer_without_quantizing_rebuilds_scenes():
    pack = EmojiPack.open()
    scenes = scene_rows(SceneSampler(pack, mini_concepts(pack), "train"), 8, seed=0, step=0)
    images = pictures_of(scenes, pack) / 255
    tokenizer = ImageTokenizerConfig().build()
    positions = tokenizer.positions(tokenizer.encoder(images))
    rebuilt = tokenizer.pixel_decoder(tokenizer.to_code(positions.features), positions.mask, (8, 8)).clamp(0, 1)
    assert -10 * (rebuilt - images).square().mean().log10() > 20  # dB; random weights give less than 10
