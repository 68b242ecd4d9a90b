import json
import shutil

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from rebus.model.vae import VaeConfig, decode_latents, encode_latents, fit_scale, load_vae
from rebus.model.vae_weights import read_vae

CONFIGS = {
    "one level": VaeConfig(fold_px=4, block_out_channels=(8,), norm_num_groups=4),
    "three levels": VaeConfig(fold_px=2, block_out_channels=(8, 12, 16), layers_per_block=2, norm_num_groups=4),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_become_the_pictures_that_the_class_makes_of_them(name, dtype, tmp_path):
    torch.manual_seed(0)
    vae = CONFIGS[name].build()
    fit_scale(vae, torch.rand(2, 3, 32, 32))
    for module in (parameter for parameter in vae.parameters() if parameter.ndim == 1):
        torch.nn.init.normal_(module, mean=0.5, std=0.3)
    vae.bfloat16().save_pretrained(tmp_path) if dtype == torch.bfloat16 else vae.save_pretrained(tmp_path)
    latents = torch.randn(3, 4, 5, 7)
    stock, read = load_vae(tmp_path), read_vae(tmp_path, "cpu")
    pictures = decode_latents(stock, latents)
    torch.testing.assert_close(decode_latents(read, latents), pictures, atol=1e-5, rtol=0)
    assert pictures.std() > 0.05


def test_any_other_autoencoder_encodes_and_decodes_as_its_class_does(tmp_path):
    """As that of Stable Diffusion: attention in the middle, convolutions around the latents, and no shift."""
    torch.manual_seed(0)
    stock = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5).eval()
    stock.save_pretrained(tmp_path)
    images, latents = torch.rand(2, 3, 16, 24), torch.randn(2, 4, 16, 24)
    with torch.no_grad():
        expected = stock.encode(2 * images - 1).latent_dist.mode() * 0.5
        pictures = (stock.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(encode_latents(load_vae(tmp_path), images), expected)
    torch.testing.assert_close(decode_latents(read_vae(tmp_path, "cpu"), latents), pictures)


def test_another_class_is_refused(saved_model, tmp_path):
    shutil.copytree(saved_model / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="_class_name of the auto-encoder must be AutoencoderKL, got VQModel"):
        read_vae(tmp_path / "vae", "cpu")
