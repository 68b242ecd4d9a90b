import json

import pytest
import torch

from rebus.model.vae import VaeConfig, decode_latents, fit_scale, load_vae
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "VQModel"}, "_class_name of the auto-encoder must be AutoencoderKL, got VQModel"),
        ({"mid_block_add_attention": True}, "mid_block_add_attention of the auto-encoder must be False, got True"),
    ],
)
def test_what_is_not_read_here_is_refused(change, message, saved_model, tmp_path):
    config = json.loads((saved_model / "vae" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        read_vae(tmp_path, "cpu")
