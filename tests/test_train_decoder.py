import random
from dataclasses import replace

import pytest
import torch
from einops import rearrange

from rebus.data.emoji import EmojiPack
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.model.code_condition import CrossAttentionConditionConfig, GridConditionConfig
from rebus.model.decoder import DiffusionDecoder
from rebus.model.vae import VaeConfig, encode_latents, fit_scale
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.select_merge import SelectMergeConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.text_condition import TextConditionConfig
from rebus.train.decoder import PRESETS, DecoderStage, mini
from rebus.train.imperfect_codes import ImperfectCodesConfig, spoilt
from rebus.train.latent_cache import LatentCacheConfig
from rebus.train.loop import train


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Folders of an untrained auto-encoder and image tokenizer, for each preset."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("frozen")
    images = torch.rand(4, 3, 128, 128)
    for preset, vae, patch_px in (
        ("tiny", VaeConfig(fold_px=4, block_out_channels=(8, 8)), 32),
        ("mini", VaeConfig(block_out_channels=(8, 8)), 16),
    ):
        model = vae.build().eval()
        fit_scale(model, images)
        model.save_pretrained(folder / preset / "vae")
        ImageTokenizerConfig(
            encoder=VitEncoderConfig(patch_px=patch_px, dim=32, depth=1, num_heads=2),
            pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
        ).build().save(folder / preset / "tokenizer")
    return folder


def config_of(preset, frozen, **run):
    config = PRESETS[preset]()
    parts = frozen / ("tiny" if preset == "tiny" else "mini")
    paths = {"vae": parts / "vae", "image_tokenizer": parts / "tokenizer"}
    return replace(config, run=replace(config.run, **run), num_start_pictures=64, **paths)


def test_it_learns_the_velocity_and_exports_what_it_learned(pack, frozen, tmp_path):
    config = config_of("tiny", frozen, output=tmp_path)
    stage = DecoderStage(config, pack)
    before = stage.validate()["velocity_mse"]
    assert train(stage, config.run, config.optim, config)
    after = stage.validate()
    assert after["velocity_mse"] < 0.88 * before  # 0.79 is the best without knowing any picture
    assert after["psnr_db"] > 0
    assert (tmp_path / "samples" / "painted.png").is_file()
    exported = DiffusionDecoder.load(tmp_path / "export", tokenizer_hash=stage.tokenizer.hash)
    assert exported.layout == stage.tokenizer.layout


@pytest.mark.parametrize(("patch", "per_patch"), [(4, False), (2, False), (2, True)])
def test_codes_start_at_the_mean_latents_of_their_places(patch, per_patch, pack, frozen):
    config, condition = config_of("mini", frozen), GridConditionConfig(per_patch=per_patch)
    stage = DecoderStage(replace(config, decoder=replace(config.decoder, patch=patch, condition=condition)), pack)
    images = pictures_of(scene_rows(stage.train_scenes, 64, seed=0, step=0), pack) / 255
    ids, latents = stage.tokenizer.encode(images).ids[..., 0], encode_latents(stage.vae, images)
    table, values = stage.decoder.embed_codes.streams[0].weight, 4 * patch**2
    for code in ids.unique()[:5]:
        cells = [latents[picture, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
                 for picture, row, column in (ids.view(64, 8, 8) == code).nonzero()]  # fmt: skip
        patches = rearrange(torch.stack(cells), "b c (h p) (w q) -> (h w) b (c p q)", p=patch, q=patch).mean(dim=1)
        if per_patch:
            torch.testing.assert_close(table[code].view(4, 256)[:, :values], patches, atol=1e-4, rtol=1e-4)
        else:
            torch.testing.assert_close(table[code, :values], patches.mean(dim=0), atol=1e-4, rtol=1e-4)
    missing = set(range(len(table) - 1)) - set(ids.unique().tolist())
    assert len(table[sorted(missing), :values].unique(dim=0)) == 1  # a code never met starts at the mean of all


def test_ranks_share_the_batch_of_one_process(pack, frozen):
    stage = DecoderStage(config_of("tiny", frozen), pack)
    whole = stage.batch(3, 0, 1)
    pictures = torch.arange(8).reshape(4, 2)
    for rank in range(2):
        part, rows = stage.batch(3, rank, 2), pictures[rank::2].flatten()
        for name in ("noise", "time", "ids"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
        torch.testing.assert_close(part.latents, whole.latents[rows], atol=1e-5, rtol=1e-5)
    assert torch.equal(whole.latents[0], whole.latents[1]) and not torch.equal(whole.noise[0], whole.noise[1])
    assert not torch.equal(whole.latents, stage.batch(4, 0, 1).latents)


def test_it_paints_larger_than_the_tokenizer_sees(pack, frozen, monkeypatch):
    config = config_of("tiny", frozen, batch_size=2)
    sizes = replace(config.decoder, latent_sizes=((16, 16), (32, 32)))
    stage = DecoderStage(replace(config, decoder=sizes), pack)
    larger, scenes = stage.batch(1, 0, 1), scene_rows(stage.train_scenes, 1, seed=0, step=1)
    assert stage.batch(0, 0, 1).latents.shape[-2:] == (16, 16) and larger.latents.shape[-2:] == (32, 32)
    expected = encode_latents(stage.vae, pictures_of(scenes, pack, 2) / 255)
    torch.testing.assert_close(larger.latents[:1], expected, atol=1e-5, rtol=1e-5)
    assert stage.loss(larger)[0].isfinite()
    tokens = stage.tokenizer.encode(pictures_of(scenes, pack))
    assert stage.pipeline.render(tokens, size=(256, 256), steps=1).shape == (1, 3, 256, 256)
    monkeypatch.setattr(stage.decoder, "time_shift", lambda size: 1.0)
    time = stage.batch(1, 0, 1).time
    torch.testing.assert_close(larger.time, 2 * time / (1 + time))


@pytest.mark.slow
def test_a_decoder_that_reads_text_is_told_what_the_pictures_show(pack, frozen):
    text = TextConditionConfig(num_pieces=421, length=24, dim=16, depth=1, num_heads=2, in_encoder=False, drop_rate=0.5)
    config = config_of("tiny", frozen)
    config = replace(config, decoder=replace(config.decoder, text=text), num_texts=400)
    stage = DecoderStage(config, pack)
    batch, second = stage.batch(3, 0, 1), stage.batch(3, 1, 2)
    assert batch.text.shape == (8, 24) and torch.equal(second.text, batch.text.reshape(4, 2, 24)[1::2].flatten(0, 1))
    assert 0 < (batch.text == stage.decoder.text.pad).all(dim=1).sum() < 8
    stage.loss(batch)[0].backward()
    assert stage.validate()["velocity_mse"] > 0


@pytest.mark.parametrize(("size", "got"), [((24, 24), "192 x 192"), ((16, 32), "128 x 256")])
def test_latents_of_no_multiple_of_a_scene_are_refused(size, got, pack, frozen):
    config = config_of("tiny", frozen)
    with pytest.raises(ValueError, match=f"latent_size must stand for a whole number of times 128 x 128 px, got {got}"):
        DecoderStage(replace(config, decoder=replace(config.decoder, latent_size=size)), pack)


def test_cached_scenes_come_with_fresh_noise_and_spoilt_codes(pack, frozen, tmp_path):
    cache = LatentCacheConfig(file=tmp_path / "latents.safetensors", num_scenes=2)
    codes = ImperfectCodesConfig(dropped=0.0, cut=0.0, perturbed=1.0, most_wrong=1.0)
    stage = DecoderStage(replace(config_of("tiny", frozen), cache=cache, codes=codes), pack)
    batch, later = stage.batch(0, 0, 1), stage.batch(1, 0, 1)
    assert stage.cache is not None
    latents, ids = stage.cache.rows([0, 1])
    for row in (*batch.latents, *later.latents):
        assert torch.equal(row, latents[0]) or torch.equal(row, latents[1])
    assert len(torch.cat([batch.noise, later.noise]).unique(dim=0)) == 16
    assert len(torch.cat([batch.ids, later.ids, ids]).unique(dim=0)) > 12
    assert torch.isfinite(stage.loss(batch)[0])
    part = stage.batch(1, 1, 2)
    assert torch.equal(part.latents, later.latents.view(4, 2, *later.latents.shape[1:])[1::2].flatten(0, 1))


def test_large_pictures_are_cached_but_not_several_sizes(pack, frozen, tmp_path):
    cache = LatentCacheConfig(file=tmp_path / "latents.safetensors", num_scenes=2)
    config = replace(config_of("tiny", frozen, batch_size=2), cache=cache, num_start_pictures=1)
    decoder = replace(config.decoder, latent_size=(32, 32))
    batch = DecoderStage(replace(config, decoder=decoder), pack).batch(0, 0, 1)
    assert batch.latents.shape == (2, 4, 32, 32) and batch.ids.shape == (2, 16, 1)
    with pytest.raises(ValueError, match="cache must be none for several sizes, got latents of 16 x 16, 32 x 32"):
        DecoderStage(replace(config, decoder=replace(decoder, latent_sizes=((16, 16), (32, 32)))), pack)


def config_of_trained(pack, frozen, folder):
    """Saves a decoder in which all features of codes are 3, and returns the configuration of its stage."""
    config = replace(config_of("tiny", frozen), num_start_pictures=1)
    trained = DecoderStage(config, pack).decoder
    with torch.no_grad():
        trained.embed_codes.streams[0].weight.fill_(3.0)
    trained.save(folder)
    return config


def test_it_starts_as_a_trained_decoder_whose_codes_stay_where_they_are(pack, frozen, tmp_path):
    config = config_of_trained(pack, frozen, tmp_path)
    decoder = replace(config.decoder, latent_size=(32, 32))
    started = DecoderStage(replace(config, decoder=decoder, start=tmp_path), pack).decoder
    assert (started.embed_codes.streams[0].weight == 3).all() and started.config == decoder


def test_features_for_each_patch_start_apart_as_its_latents_are(pack, frozen, tmp_path):
    config = config_of_trained(pack, frozen, tmp_path)
    decoder = replace(config.decoder, latent_size=(32, 32), condition=GridConditionConfig(per_patch=True))
    fresh = DecoderStage(replace(config, decoder=decoder), pack).decoder.embed_codes.streams[0].weight[:-1]
    started = DecoderStage(replace(config, decoder=decoder, start=tmp_path), pack).decoder.embed_codes.streams[0].weight
    smaller = DecoderStage(config, pack).decoder.embed_codes.streams[0].weight[:-1]
    torch.testing.assert_close(started[:-1], 3 + fresh - smaller.repeat(1, 4), atol=1e-4, rtol=0)
    assert (started[-1] == 3).all() and fresh.view(-1, 4, 64).std(dim=1).max() > 0.1


@pytest.mark.parametrize(
    "preset", [pytest.param(one, marks=pytest.mark.slow) if one == "mini_256" else one for one in PRESETS]
)
def test_every_preset_builds_and_takes_a_loss(preset, pack, frozen):
    stage = DecoderStage(config_of(preset, frozen, batch_size=2), pack)
    loss, _ = stage.loss(stage.batch(0, 0, 1))
    assert torch.isfinite(loss) and 0.5 < loss < 4


def test_noises_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="noises_per_picture must be a divisor of run.batch_size = 32, got 3"):
        replace(mini(), noises_per_picture=3)


def test_codes_are_spoilt_as_often_as_asked():
    quantizer, config = FiniteScalarConfig().build(), ImperfectCodesConfig(dropped=0.2, cut=0.3, perturbed=0.5)
    ids = torch.arange(64).reshape(64, 1)
    rows = torch.stack([spoilt(ids, quantizer, config, random.Random(seed)) for seed in range(2000)])[..., 0]
    held = rows >= 0
    dropped, cut = ~held.any(dim=1), held.any(dim=1) & ~held.all(dim=1)
    wrong = (held & (rows != ids[:, 0])).sum(dim=1) / held.sum(dim=1).clamp_min(1)
    assert abs(dropped.float().mean() - 0.2) < 0.03 and abs(cut.float().mean() - 0.3) < 0.03
    assert abs((wrong > 0).float()[~dropped].mean() - 0.5) < 0.1
    assert 0.05 < wrong[held.all(dim=1) & (wrong > 0)].mean() < 0.11  # half of most_wrong, and no perturbed row unhurt
    assert torch.equal(held.long().cummin(dim=1).values, held.long())  # what is kept is a prefix


def test_a_short_picture_is_cut_among_its_codes_and_gets_no_others():
    quantizer, config = FiniteScalarConfig().build(), ImperfectCodesConfig(dropped=0.0, cut=0.5, perturbed=1.0)
    ids = torch.where(torch.arange(64) < 5, torch.arange(64), -1)[:, None]
    rows = torch.stack([spoilt(ids, quantizer, config, random.Random(seed)) for seed in range(300)])[..., 0]
    lengths = (rows >= 0).sum(dim=1)
    assert (rows[:, 5:] == -1).all() and set(lengths.tolist()) == {1, 2, 3, 4, 5}
    assert 0.5 < (lengths == 5).float().mean() < 0.7  # half are not cut, and a fifth of the others after the last


def test_pictures_of_lengths_of_their_own_are_learned_as_whole_ones(pack, frozen, tmp_path):
    torch.manual_seed(0)
    ImageTokenizerConfig(
        encoder=VitEncoderConfig(patch_px=32, dim=32, depth=1, num_heads=2),
        layout=SelectMergeConfig(depth=1, num_heads=2),
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    ).build().save(tmp_path)
    config = config_of("tiny", frozen, batch_size=4)
    decoder = replace(config.decoder, condition=CrossAttentionConditionConfig())
    stage = DecoderStage(replace(config, image_tokenizer=tmp_path, decoder=decoder, num_validation=2), pack)
    batch = stage.batch(0, 0, 1)
    assert batch.ids.shape == (4, 16, 1) and (batch.ids == -1).any()
    assert stage.loss(batch)[0].isfinite() and stage.validate()["velocity_mse"] > 0


def test_perfect_codes_stay_as_they_are():
    config = ImperfectCodesConfig(dropped=0.0, cut=0.0, perturbed=0.0)
    ids = torch.arange(6).reshape(6, 1)
    assert torch.equal(spoilt(ids, FiniteScalarConfig().build(), config, random.Random(0)), ids)


@pytest.mark.parametrize("wrong", [{"dropped": 1.5}, {"most_wrong": -0.1}, {"dropped": 0.6, "cut": 0.6}])
def test_wrong_shares_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        ImperfectCodesConfig(**wrong)
