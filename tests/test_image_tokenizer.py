import json
from dataclasses import replace

import pytest
import torch

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.saved_config import config_from_json, config_to_json

TINY = ImageTokenizerConfig(
    image_size_px=24,
    encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
    quantizer=FiniteScalarConfig(levels=(5, 3)),
    pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
)
NESTED = replace(TINY, layout=NestedQueriesConfig(num_queries=7, depth=1, num_heads=2))
CONFIGS = {
    "grid": TINY,
    "nested": NESTED,
    "vector": replace(TINY, quantizer=VectorConfig(codebook_size=17, dim=4)),
    "nested_vector": replace(NESTED, quantizer=VectorConfig(codebook_size=17, dim=4)),
}


def pictures(number=5, side=24):
    return torch.randint(256, (number, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CONFIGS)
def tokenizer(request):
    torch.manual_seed(0)
    return CONFIGS[request.param].build().eval()


def test_encode_is_repeatable_and_takes_bytes_or_floats(tokenizer):
    tokens = tokenizer.encode(pictures())
    assert tokens.ids.shape == (5, tokenizer.layout.num_positions, 1)
    assert torch.equal(tokens.ids, tokenizer.encode(pictures()).ids)
    assert torch.equal(tokens.ids, tokenizer.encode(pictures().float() / 255).ids)


def test_a_picture_has_the_same_codes_alone_and_in_a_batch(tokenizer):
    together = tokenizer.encode(pictures()).ids
    alone = torch.cat([tokenizer.encode(picture[None]).ids for picture in pictures()])
    assert (together == alone).float().mean() > 0.99  # a feature on a rounding edge may fall either way


def test_embed_gives_the_quantized_features_and_decode_a_picture(tokenizer):
    images = pictures().float() / 255
    tokens = tokenizer.encode(images)
    torch.testing.assert_close(tokenizer.embed(tokens), tokenizer.quantize(images).features)
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_a_prefix_decodes_and_later_codes_do_not_reach_earlier_positions(tokenizer):
    tokens = tokenizer.encode(pictures())
    assert tokenizer.decode(tokens.prefix(3)).shape == (5, 3, 24, 24)
    if tokenizer.layout.prefix_decodable:
        assert torch.equal(tokenizer.encode(pictures(), length=3).ids, tokens.ids[:, :3])
    else:
        with pytest.raises(ValueError, match="length must be left out"):
            tokenizer.encode(pictures(), length=3)


def test_queries_are_causal():
    torch.manual_seed(0)
    layout = NESTED.build().positions
    features = torch.randn(2, 9, 16)
    before = layout(Patches(features, ((3, 3),))).features
    with torch.no_grad():
        layout.queries[5:] += torch.randn(2, 16)
    after = layout(Patches(features, ((3, 3),))).features
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


def test_training_lengths_are_powers_of_two_or_all():
    layout = NESTED.build().positions
    lengths = layout.draw_lengths(200, torch.Generator().manual_seed(0))
    assert set(lengths.tolist()) == {1, 2, 4, 7}


def test_save_and_load_keep_codes_pictures_and_hash(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    first = ImageTokenizer.load(tmp_path)
    first.save(tmp_path / "again")
    second = ImageTokenizer.load(tmp_path / "again")
    assert first.hash == second.hash == tokenizer.hash
    assert first.layout == tokenizer.layout
    assert torch.equal(first.encode(pictures()).ids, second.encode(pictures()).ids)
    assert torch.equal(first.decode(first.encode(pictures())), second.decode(second.encode(pictures())))


def test_other_weights_have_another_hash():
    assert TINY.build().hash != TINY.build().hash


def test_bad_input_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="pictures must be 24 x 24 pixels, got 32 x 32"):
        tokenizer.encode(pictures(side=32))
    with pytest.raises(ValueError, match="must hold a saved image tokenizer"):
        ImageTokenizer.load(tmp_path / "nothing")
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder"]["dim"] = 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="weights must fit config.json"):
        ImageTokenizer.load(tmp_path)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configs_survive_json(config):
    assert config_from_json(ImageTokenizerConfig, json.loads(json.dumps(config_to_json(config)))) == config


def test_config_errors_name_the_key_and_what_is_allowed():
    values = config_to_json(TINY)
    with pytest.raises(ValueError, match="must have keys among .*got \\['patch'\\]"):
        config_from_json(ImageTokenizerConfig, {**values, "patch": 3})
    with pytest.raises(ValueError, match="'is' must be one of \\['GridConfig', .*\\], got 'Slots'"):
        config_from_json(ImageTokenizerConfig, {**values, "layout": {"is": "Slots"}})
    with pytest.raises(ValueError, match="config must be a GridConfig"):
        config_from_json(GridConfig, {"is": "Slots"})


def test_patch_must_divide_the_picture():
    with pytest.raises(ValueError, match="multiple of patch_px=8, got 20 x 20"):
        replace(TINY, image_size_px=20).build()


@pytest.mark.parametrize("name", ["grid", "nested"])
def test_it_learns_to_rebuild_four_pictures(name):
    torch.manual_seed(0)
    tokenizer = CONFIGS[name].build()
    corners = torch.zeros(4, 3, 24, 24)
    for index in range(4):
        corners[index, :, 12 * (index // 2) :, 12 * (index % 2) :] = 1
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        loss = (tokenizer.paint(tokenizer.quantize(corners)) - corners).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]
