from dataclasses import replace

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.model.vae import VaeConfig, encode_latents, fit_scale
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.train import latent_cache
from rebus.train.latent_cache import LatentCacheConfig, open_cache


@pytest.fixture(scope="module")
def sampler():
    pack = EmojiPack.open()
    return SceneSampler(pack, mini_concepts(pack), "train")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = VaeConfig(fold_px=4, block_out_channels=(8, 8)).build().eval()
    fit_scale(vae, torch.rand(4, 3, 128, 128))
    return vae


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    return (
        ImageTokenizerConfig(
            encoder=VitEncoderConfig(patch_px=32, dim=32, depth=1, num_heads=2),
            pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
        )
        .build()
        .eval()
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("cache") / "deep" / "latents.safetensors"
    return LatentCacheConfig(file=file, num_scenes=35, seed=3)


@pytest.fixture(scope="module")
def cache(config, sampler, vae, tokenizer):
    return open_cache(config, sampler, vae, "cafe", tokenizer)


def test_rows_are_what_encoding_gives_and_pictures_what_was_encoded(cache, sampler, vae, tokenizer):
    images = pictures_of([scene_rows(sampler, 1, seed=3, step=index)[0] for index in (34, 0, 7)], sampler.pack) / 255
    latents, ids = cache.rows([34, 0, 7])
    torch.testing.assert_close(latents, encode_latents(vae, images), atol=4e-3, rtol=1e-3)
    assert latents.dtype == torch.float32 and torch.equal(ids, tokenizer.encode(images).ids)
    assert torch.equal(cache.pictures([34, 0, 7]), images)


def test_latents_may_be_of_larger_pictures_than_the_codes(sampler, vae, tokenizer, tmp_path):
    config = LatentCacheConfig(file=tmp_path / "latents.safetensors", num_scenes=2, seed=3)
    cache = open_cache(config, sampler, vae, "cafe", tokenizer, 2)
    scenes, (latents, ids) = cache.scenes([0, 1]), cache.rows([0, 1])
    larger = pictures_of(scenes, sampler.pack, 2) / 255
    torch.testing.assert_close(latents, encode_latents(vae, larger), atol=4e-3, rtol=1e-3)
    assert torch.equal(ids, tokenizer.encode(pictures_of(scenes, sampler.pack)).ids)
    assert torch.equal(cache.pictures([0, 1]), larger)
    with pytest.raises(ValueError, match="must be made of the same"):
        open_cache(config, sampler, vae, "cafe", tokenizer)


def test_it_is_written_once(cache, config, sampler, vae, tokenizer, monkeypatch):
    monkeypatch.setattr(latent_cache, "_write", None)
    again = open_cache(config, sampler, vae, "cafe", tokenizer)
    assert torch.equal(again.rows([3]).latents, cache.rows([3]).latents)
    assert [*config.file.parent.iterdir()] == [config.file]


def test_all_scenes_are_drawn_and_by_the_seed(cache):
    numbers = {number for step in range(40) for number in cache.drawn(6, seed=1, step=step)}
    assert numbers == set(range(35)) and cache.drawn(6, seed=1, step=5) != cache.drawn(6, seed=2, step=5)


def test_latents_of_anything_else_are_refused(cache, config, sampler, vae, tokenizer, tmp_path):
    others = SceneSampler(sampler.pack, sampler.concepts[:5], "train")
    for made_of in (
        (config, sampler, vae, "beef", tokenizer),
        (config, sampler, vae, "cafe", tokenizer.config.build()),
        (config, others, vae, "cafe", tokenizer),
        (replace(config, num_scenes=36), sampler, vae, "cafe", tokenizer),
        (replace(config, seed=4), sampler, vae, "cafe", tokenizer),
    ):
        with pytest.raises(ValueError, match="must be made of the same auto-encoder, image tokenizer, scenes"):
            open_cache(*made_of)
    broken = replace(config, file=tmp_path / "latents.safetensors")
    broken.file.write_text("no latents")
    with pytest.raises(ValueError, match="must hold latents and codes, got none"):
        open_cache(broken, sampler, vae, "cafe", tokenizer)


def test_no_scenes_are_refused():
    with pytest.raises(ValueError, match="cache.num_scenes must be at least 1, got 0"):
        LatentCacheConfig(num_scenes=0)
