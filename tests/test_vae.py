from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from rebus.data.emoji import EmojiPack
from rebus.model.vae import (
    VaeConfig,
    decode_latents,
    downsampling,
    encode_latents,
    fit_scale,
    load_vae,
    posterior,
    rebuild,
)
from rebus.train.loop import train
from rebus.train.vae import PRESETS, VaeStage, edge_distance, tiny

TINY = VaeConfig(fold_px=2, block_out_channels=(8, 16), norm_num_groups=4)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return TINY.build().eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 24, 40, generator=torch.Generator().manual_seed(1))


def test_latents_are_a_fourth_of_the_sides(vae, images):
    latents = encode_latents(vae, images)
    assert downsampling(vae) == 4 and latents.shape == (3, 4, 6, 10)
    assert decode_latents(vae, latents).shape == images.shape


def test_the_fitted_scale_gives_zero_mean_and_unit_spread_and_is_undone_by_decoding(images):
    torch.manual_seed(0)
    vae = TINY.build().eval()
    fit_scale(vae, images)
    latents = encode_latents(vae, images)
    assert vae.config["scaling_factor"] != 1 and vae.config["shift_factor"] != 0
    torch.testing.assert_close(latents.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(), torch.tensor(1.0), atol=1e-4, rtol=0)
    with torch.no_grad():
        plain = rebuild(vae, posterior(vae, images)[0]).clamp(0, 1)
    torch.testing.assert_close(decode_latents(vae, latents), plain, atol=1e-5, rtol=0)


def test_a_saved_one_is_a_stock_model_and_comes_back_the_same(vae, images, tmp_path):
    fit_scale(vae, images)
    vae.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path)
    torch.testing.assert_close(encode_latents(loaded, images), encode_latents(vae, images), atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters()) and not loaded.training
    stock = AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert stock.config["scaling_factor"] == vae.config["scaling_factor"]


def test_a_picture_that_does_not_divide_is_refused(vae):
    with pytest.raises(ValueError, match="sides of pictures must be multiples of 4 px"):
        encode_latents(vae, torch.zeros(1, 3, 24, 22))


def test_a_folder_without_a_model_or_with_another_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a saved auto-encoder"):
        load_vae(tmp_path / "nothing")
    gray = AutoencoderKL(in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4)
    gray.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="in_channels must be 3 times a square"):
        load_vae(tmp_path)


@pytest.mark.parametrize("wrong", [{"fold_px": 0}, {"norm_num_groups": 7}])
def test_a_wrong_config_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        VaeConfig(**wrong)


def test_edges_count_differences_between_neighbours_only():
    flat, bar = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    bar[..., 4:] = 1
    assert edge_distance(flat + 0.3, flat) == 0
    # One step of height 1 among 7, 3 and 1 differences along a row; none along a column.
    torch.testing.assert_close(edge_distance(bar, flat), torch.tensor(1 / 7 + 1 / 3 + 1))


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


def test_it_learns_the_scenes_and_exports_what_it_learned(pack, tmp_path):
    config = replace(tiny(), run=replace(tiny().run, output=tmp_path))
    stage = VaeStage(config, pack)
    before = stage.validate()["psnr_db"]
    assert train(stage, config.run, config.optim, config)
    assert stage.validate()["psnr_db"] > before + 2
    assert (tmp_path / "samples" / "rebuilt.png").is_file()
    exported = load_vae(tmp_path / "export")
    latents = encode_latents(exported, stage._scenes(stage.train_scenes, 16))
    assert abs(latents.mean()) < 0.2 and 0.8 < latents.std() < 1.2


def test_ranks_share_the_batch_of_one_process(pack):
    stage = VaeStage(tiny(), pack)
    whole = stage.batch(3, 0, 1)
    for rank in range(2):
        part = stage.batch(3, rank, 2)
        assert torch.equal(part.images, whole.images[rank::2]) and torch.equal(part.noise, whole.noise[rank::2])
    assert not torch.equal(whole.images, stage.batch(4, 0, 1).images)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_takes_a_loss(name, pack):
    config = PRESETS[name]()
    stage = VaeStage(replace(config, run=replace(config.run, batch_size=2)), pack)
    loss, terms = stage.loss(stage.batch(0, 0, 1))
    assert torch.isfinite(loss) and set(terms) == {"l1", "l2", "edges", "kl"}


def test_a_crop_that_does_not_fit_is_refused(pack):
    with pytest.raises(ValueError, match="crop_px must be a multiple of 8 up to 128, got 36"):
        VaeStage(replace(tiny(), crop_px=36), pack)
