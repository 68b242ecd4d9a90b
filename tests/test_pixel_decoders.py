import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from rebus.tokenizers.autoencoder import AutoencoderConfig
from rebus.tokenizers.encoders.any_size_vit import AnySizeVitEncoderConfig
from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.any_size_vit import AnySizeVitPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.pixel_decoders.noisy_cnn import NoisyCnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.shares import Shares
from rebus.tokenizers.pixel_decoders.vae import VaePixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.saved_config import config_from_json, config_to_json

GRIDS = ((3, 5), (4, 2))
VAE = AutoencoderConfig(
    architecture={
        "block_out_channels": [4, 8],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "layers_per_block": 1,
        "latent_channels": 3,
        "norm_num_groups": 2,
    }
)
CNN = CnnPixelDecoderConfig(channels=4, multipliers=(1, 2), num_blocks=1, dim=16, num_groups=2, depth=1, num_heads=2)
DECODERS = {
    "vit": VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    "any_size_vit": AnySizeVitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    "cnn": CNN,
    "cnn_without_attention": replace(CNN, attention=False, cosine_start=False),
    "noisy_cnn": NoisyCnnPixelDecoderConfig(cnn=CNN),
    "vae": VaePixelDecoderConfig(autoencoder=VAE, dim=16, depth=1, num_heads=2, frozen=False),
}
ANY_SIZE = [name for name in DECODERS if name != "vit"]
NUM_FEATURES = 7
"""Of a sequence; a grid has as many as cells."""


def canvas(on_grid, grids=GRIDS):
    num_features = max(rows * columns for rows, columns in grids) if on_grid else NUM_FEATURES
    return Canvas(feature_dim=6, num_features=num_features, on_grid=on_grid, grids=grids, patch_px=8)


def built(name, on_grid, grids=GRIDS):
    torch.manual_seed(0)
    decoder = DECODERS[name].build(canvas(on_grid, grids)).eval()
    for parameter in decoder.parameters():
        if not parameter.any():  # fresh, much is silent
            torch.nn.init.normal_(parameter, std=0.1)
    return decoder


def codes(number, dim=6):
    features = torch.randn(3, number, dim, generator=torch.Generator().manual_seed(0))
    return features, torch.arange(number) < torch.tensor([[number], [number - 2], [1]])


@pytest.mark.parametrize("on_grid", [True, False], ids=["grid", "sequence"])
@pytest.mark.parametrize("name", DECODERS)
class TestContract:
    def test_pictures_have_the_size_of_their_grid(self, name, on_grid):
        for grids in (GRIDS,) if name in ANY_SIZE else ((GRIDS[0],), (GRIDS[1],)):
            decoder = built(name, on_grid, grids)
            for grid in grids:
                features, mask = codes(grid[0] * grid[1] if on_grid else NUM_FEATURES)
                pixels = decoder(features, mask, grid)
                assert pixels.shape == (3, 3, 8 * grid[0], 8 * grid[1])
                assert pixels.isfinite().all() and pixels.std() > 0

    def test_a_picture_is_the_same_alone_and_missing_features_are_not_read(self, name, on_grid):
        decoder = built(name, on_grid, GRIDS[:1])
        features, mask = codes(15 if on_grid else NUM_FEATURES)
        together = decoder(features, mask, GRIDS[0])
        other = torch.where(mask[..., None], features, torch.randn(features.shape))
        alone = torch.cat([decoder(other[[row]], mask[[row]], GRIDS[0]) for row in range(3)])
        torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(decoder(features, torch.ones_like(mask), GRIDS[0])[1:], together[1:], atol=1e-3)

    def test_all_that_learns_has_a_gradient(self, name, on_grid):
        decoder = built(name, on_grid, GRIDS[:1])
        features, mask = codes(15 if on_grid else NUM_FEATURES)
        decoder(features.requires_grad_(), mask, GRIDS[0]).square().sum().backward()
        assert features.grad is not None and features.grad[mask].abs().sum(dim=-1).all()
        learning = {name: parameter for name, parameter in decoder.named_parameters() if parameter.requires_grad}
        assert [name for name, parameter in learning.items() if parameter.grad is None] == []

    def test_its_config_survives_json_and_builds_it_again_on_the_meta_device(self, name, on_grid):
        decoder = built(name, on_grid, GRIDS[:1])
        config = ImageTokenizerConfig(pixel_decoder=decoder.config)
        returned = config_from_json(ImageTokenizerConfig, json.loads(json.dumps(config_to_json(config))))
        assert returned == config
        with torch.device("meta"):
            again = returned.pixel_decoder.build(canvas(on_grid, GRIDS[:1]))
        assert {name: value.shape for name, value in again.state_dict().items()} == {
            name: value.shape for name, value in decoder.state_dict().items()
        }


@pytest.mark.parametrize("name", DECODERS)
def test_a_sequence_may_be_short(name):
    decoder = built(name, False, GRIDS[:1])
    features, _ = codes(NUM_FEATURES)
    whole = torch.ones(3, NUM_FEATURES, dtype=torch.bool)
    first = whole.clone()
    first[:, 2:] = False
    short = decoder(features[:, :2], whole[:, :2], GRIDS[0])
    assert short.shape == (3, 3, 24, 40) and not torch.allclose(short, decoder(features, whole, GRIDS[0]))
    assert decoder(features, first, GRIDS[0]).isfinite().all()


@pytest.mark.parametrize("patch_px", [4, 6])
def test_fresh_encoder_and_decoder_undo_each_other(patch_px):
    dim = 3 * patch_px**2
    small = {"channels": 4, "multipliers": (1, 2), "num_blocks": 1, "num_groups": 2, "dim": dim}
    encoders = (
        AnySizeVitEncoderConfig(patch_px=patch_px, dim=dim, depth=1, num_heads=1),
        CnnEncoderConfig(patch_px=patch_px, **small),
    )
    cnn = CnnPixelDecoderConfig(**small)
    decoders = (AnySizeVitPixelDecoderConfig(dim=dim, depth=1, num_heads=1), cnn, NoisyCnnPixelDecoderConfig(cnn=cnn))
    images = torch.rand(2, 3, 3 * patch_px, 2 * patch_px)
    for encoder in encoders:
        patches = encoder.build(((3 * patch_px, 2 * patch_px),))(images)
        for decoder in decoders:
            whole = Canvas(feature_dim=dim, num_features=6, on_grid=True, grids=((3, 2),), patch_px=patch_px)
            rebuilt = decoder.build(whole)(patches.features, torch.ones(2, 6, dtype=torch.bool), (3, 2))
            torch.testing.assert_close(rebuilt, images, atol=1e-5, rtol=1e-4)


def test_each_cell_gets_the_mean_of_the_codes_and_learned_shares_of_them():
    shares = Shares(canvas(False, ((2, 3), (1, 5))))
    features, mask = codes(NUM_FEATURES)
    mean = torch.stack([features[row, mask[row]].mean(dim=0) for row in range(3)])[:, None]
    torch.testing.assert_close(shares(features, mask, (2, 3)), mean.expand(-1, 6, -1))
    assert shares.weight.shape == (NUM_FEATURES, 2, 5)
    with torch.no_grad():
        shares.weight[4, 1, 2] = 1 / 30  # cell (1, 2) of the largest grid is the mean plus how code 4 differs from it
    shared = shares(features, mask, (2, 5))
    torch.testing.assert_close(shared[:2, 7], features[:2, 4])
    torch.testing.assert_close(shared[2, 7], mean[2, 0])  # this picture has no code 4
    torch.testing.assert_close(shared[:, :7], mean.expand(-1, 7, -1))


def test_noise_is_drawn_and_without_it_is_always_the_same():
    decoder = built("noisy_cnn", True)
    torch.nn.init.normal_(decoder.convolutions.conv_in.weight)
    features, mask = codes(15)
    draws = [decoder.draw_noise(seeds, (3, 5)) for seeds in ((1, 2, 3), (1, 2, 3), (1, 2, 4))]
    first, same, other = (decoder(features, mask, (3, 5), noise) for noise in draws)
    assert torch.equal(first, same) and torch.equal(first[:2], other[:2])
    assert not torch.allclose(first[2], other[2], atol=1e-3)
    assert torch.equal(decoder(features, mask, (3, 5)), decoder(features, mask, (3, 5)))
    tokenizer = ImageTokenizerConfig(
        image_size_px=24,
        encoder=AnySizeVitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        quantizer=FiniteScalarConfig(levels=(5, 3)),
        pixel_decoder=DECODERS["noisy_cnn"],
    ).build()
    for convolution in (tokenizer.pixel_decoder.convolutions.conv_in, tokenizer.pixel_decoder.convolutions.conv_out):
        torch.nn.init.normal_(convolution.weight)
    coded = tokenizer.quantize(torch.rand(3, 3, 24, 24))
    first, same, other = (tokenizer.paint(coded, noise[:, :9]) for noise in draws)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_norms_follow_spread_and_mean_of_the_features():
    norm = built("noisy_cnn", True).norms[0]
    hidden, features = torch.randn(2, 8, 3, 5), torch.randn(2, 15, 16)
    spread = (features.var(dim=1, unbiased=False) + 1e-6).sqrt()
    scale = F.linear(spread, norm.to_scale.weight, norm.to_scale.bias)
    shift = F.linear(features.mean(dim=1), norm.to_shift.weight, norm.to_shift.bias)
    groups = rearrange(hidden, "b (g c) h w -> b g (c h w)", g=2)
    normed = F.layer_norm(groups, groups.shape[-1:], eps=1e-6)
    normed = rearrange(normed, "b g (c h w) -> b (g c) h w", c=4, h=3)
    torch.testing.assert_close(norm(hidden, features), normed * scale[..., None, None] + shift[..., None, None])


def test_frozen_painters_pass_gradients_on_and_do_not_learn():
    decoder = replace(DECODERS["vae"], frozen=True).build(canvas(True))
    features, mask = codes(15)
    decoder(features.requires_grad_(), mask, (3, 5)).sum().backward()
    assert features.grad is not None and features.grad.any()
    assert not any(parameter.requires_grad for parameter in decoder.painter.parameters())


BAD_CONFIGS = {
    "depth must be at least 1 for codes that lie on no grid, got 0": lambda: replace(CNN, depth=0).build(canvas(False)),
    "patch_px must be a multiple of 16 for 5 levels, got 8": lambda: replace(CNN, multipliers=(1,) * 5).build(
        canvas(True)
    ),
    "must have a downsampling that divides patches of 8 px, got 16": lambda: VaePixelDecoderConfig(
        autoencoder=AutoencoderConfig(
            architecture={
                **VAE.architecture,
                "block_out_channels": [4] * 5,
                "down_block_types": ["DownEncoderBlock2D"] * 5,
                "up_block_types": ["UpDecoderBlock2D"] * 5,
            }
        )
    ).build(canvas(True)),
    "dim must be a multiple of 4 \\* num_heads = 12 .*got 16": lambda: AnySizeVitPixelDecoderConfig(
        dim=16, num_heads=3
    ).build(canvas(True)),
    "grids of a VitPixelDecoder must be one, got 2": lambda: DECODERS["vit"].build(canvas(True)),
}


@pytest.mark.parametrize("message", BAD_CONFIGS)
def test_bad_configs_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD_CONFIGS[message]()
