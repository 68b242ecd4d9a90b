"""Encoders and pixel decoders learn together, without a quantizer between them."""

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.tokenizers.autoencoder import AutoencoderConfig
from rebus.tokenizers.encoders.any_size_vit import AnySizeVitEncoderConfig
from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.encoders.tower import TowerEncoderConfig
from rebus.tokenizers.encoders.two_branch import TwoBranchEncoderConfig
from rebus.tokenizers.encoders.vae_latents import VaeLatentsEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.any_size_vit import AnySizeVitPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.noisy_cnn import NoisyCnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vae import VaePixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.none import ContinuousConfig

pytestmark = pytest.mark.slow
VAE = AutoencoderConfig(pretrained="assets/mini/vae")
CONVOLUTIONS = {"channels": 24, "multipliers": (1, 2, 4), "num_blocks": 1, "dim": 64, "num_groups": 8}
WIDTHS = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 128}
VIT = AnySizeVitEncoderConfig(dim=96, depth=2, num_heads=2)
SIGLIP = TowerEncoderConfig(architecture={**WIDTHS, "intermediate_size": 192})
ENCODERS = {
    "any_size_vit": VIT,
    "cnn": CnnEncoderConfig(**CONVOLUTIONS),
    "dinov2": TowerEncoderConfig(kind="dinov2", architecture={**WIDTHS, "mlp_ratio": 2}),
    "siglip": SIGLIP,
    "latents": VaeLatentsEncoderConfig(autoencoder=VAE, patch=4, dim=96, depth=2, num_heads=2),
    "two_branch": TwoBranchEncoderConfig(semantic=SIGLIP, pixel=VIT),
}
CNN = CnnPixelDecoderConfig(**CONVOLUTIONS)
DECODERS = {
    "any_size_vit": AnySizeVitPixelDecoderConfig(dim=96, depth=2, num_heads=2),
    "cnn": CNN,
    "noisy_cnn": NoisyCnnPixelDecoderConfig(cnn=CNN),
    "vae": VaePixelDecoderConfig(autoencoder=VAE, dim=96, depth=2, num_heads=2),
}
SEQUENCE_DECODERS = {
    "vit": VitPixelDecoderConfig(dim=96, depth=2, num_heads=2),
    "any_size_vit": DECODERS["any_size_vit"],
    "cnn": CnnPixelDecoderConfig(**CONVOLUTIONS, depth=1, num_heads=2),
}
MEAN_COLOR_DB = 14.8
"""Of held-out scenes painted in their own mean colour."""


@pytest.fixture(scope="module")
def scenes():
    """Scenes to learn from, and others to look at."""
    pack = EmojiPack.open()
    split = [
        pictures_of(scene_rows(SceneSampler(pack, mini_concepts(pack), name), number, seed=0, step=0), pack) / 255
        for name, number in (("train", 1600), ("held_out", 64))
    ]
    _, held_out = split
    mean = held_out.mean((2, 3), keepdim=True).expand_as(held_out)
    assert abs(peak_signal_noise_ratio(mean, held_out, data_range=1.0, dim=(1, 2, 3)) - MEAN_COLOR_DB) < 0.1
    return split


def rebuilt_db(encoder, decoder, layout, rate, images, held_out):
    """Returns the mean PSNR of held-out scenes after a training that sees each image once."""
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        encoder=encoder, layout=layout, quantizer=ContinuousConfig(dim=32), pixel_decoder=decoder
    )
    tokenizer = config.build()
    parameters = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95))
    batches = images.split(16)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, (len(batches) - step) / (0.3 * len(batches)))
        difference = tokenizer.paint(tokenizer.quantize(batch)) - batch
        loss = difference.abs().mean() + 0.5 * difference.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        rebuilt = tokenizer.paint(tokenizer.quantize(held_out)).clamp(0, 1)
    return peak_signal_noise_ratio(rebuilt, held_out, data_range=1.0, dim=(1, 2, 3)).item()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_pairs_learn_within_a_few_hundred_pictures(encoder, decoder, scenes):
    images, held_out = scenes
    # Most begin with cosine coefficients of patches, the others with latents; in between a map has to be learned first.
    matched = (encoder == "latents") == (decoder == "vae")
    rate = 3e-4 if matched else 1e-3
    reached = rebuilt_db(ENCODERS[encoder], DECODERS[decoder], GridConfig(), rate, images[:480], held_out)
    print(f"{encoder} -> {decoder}: {reached:.1f} dB")
    assert reached > (20.5 if matched else MEAN_COLOR_DB + 1)


@pytest.mark.parametrize("decoder", SEQUENCE_DECODERS)
def test_codes_without_places_find_them(decoder, scenes):
    layout = NestedQueriesConfig(num_queries=64, depth=2, num_heads=2)
    reached = rebuilt_db(VIT, SEQUENCE_DECODERS[decoder], layout, 6e-4, *scenes)
    print(f"sequence -> {decoder}: {reached:.1f} dB")
    assert reached > 19.5
