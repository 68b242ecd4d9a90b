"""What holds of every layout: the contract between pictures, positions, codes and what a decoder reads."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.encoders.two_branch import TwoBranchEncoderConfig
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.contract import Extras
from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.halting import HaltingQueriesConfig
from rebus.tokenizers.layouts.holistic_grid import HolisticGridConfig
from rebus.tokenizers.layouts.lengths import LengthsConfig
from rebus.tokenizers.layouts.levels import ResidualLevelsConfig
from rebus.tokenizers.layouts.multi_scale import MultiScaleConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.layouts.queries import QueriesConfig
from rebus.tokenizers.layouts.recurrent_crops import RecurrentCropsConfig
from rebus.tokenizers.layouts.select_merge import SelectMergeConfig
from rebus.tokenizers.layouts.slots import SlotsConfig
from rebus.tokenizers.layouts.two_grids import TwoGridsConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.text_condition import TextConditionConfig

PATCHES_OF_8 = VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2)
TWO_GRIDS = TwoBranchEncoderConfig(semantic=replace(PATCHES_OF_8, patch_px=12), pixel=PATCHES_OF_8, sequence_dim=16)
TINY = ImageTokenizerConfig(
    image_size_px=24,
    encoder=PATCHES_OF_8,
    quantizer=FiniteScalarConfig(levels=(8, 5, 5, 5)),
    pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
)
SMALL = {"depth": 1, "num_heads": 2}
LAYOUTS = {
    "grid": GridConfig(),
    "free": QueriesConfig(num_queries=7, **SMALL),
    "free_one_length": QueriesConfig(num_queries=7, lengths=LengthsConfig(draw="uniform", scope="batch"), **SMALL),
    "causal": QueriesConfig(num_queries=7, order="causal", start="learned", **SMALL),
    "nested": NestedQueriesConfig(num_queries=7, **SMALL),
    "holistic": HolisticGridConfig(num_holistic=5, shift=2, **SMALL),
    "slots": SlotsConfig(num_slots=5, num_iterations=2, **SMALL),
    "select": SelectMergeConfig(**SMALL),
    "crops": RecurrentCropsConfig(num_positions=5, crops_per_side=2, crop_share=0.6, order=(3, 1, 0, 2), **SMALL),
    "crops_learned": RecurrentCropsConfig(num_positions=5, crops_per_side=2, crop_share=0.5, start="learned", **SMALL),
    "scales": MultiScaleConfig(num_phi=2, drop_rate=0.3),
    "halting": HaltingQueriesConfig(num_queries=7, **SMALL),
    "levels": ResidualLevelsConfig(num_queries=8, shortest_prefix=2, depth=2, num_stages=2, num_heads=2),
    "two_grids": TwoGridsConfig(),
}
READ_CONTEXT = {"free", "free_one_length", "causal", "nested", "slots", "crops", "crops_learned", "halting", "levels"}


def config_of(name, **fields):
    encoder = TWO_GRIDS if name == "two_grids" else TINY.encoder
    return replace(TINY, layout=LAYOUTS[name], encoder=encoder, **fields)


def shaken(config, seed=0):
    """A tokenizer whose fresh blocks, which pass on what comes in, do something."""
    torch.manual_seed(seed)
    tokenizer = config.build()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return tokenizer


def pictures(number=6):
    return torch.rand(number, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def drawn(layout, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return layout.draw_lengths(number, generator), layout.draw_noise(number, generator)


@pytest.fixture(scope="module", params=LAYOUTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(name):
    return shaken(config_of(name)).eval()


def test_shapes_are_those_of_the_contract(tokenizer):
    coded, layout, canvas = tokenizer.quantize(pictures()), tokenizer.layout, tokenizer.canvas
    assert coded.ids.shape == (6, layout.num_positions, 1)
    assert coded.features.shape == (6, canvas.num_features, canvas.feature_dim)
    assert coded.features_mask.shape == coded.features.shape[:2]
    lengths = coded.mask.sum(dim=1)
    assert lengths.min() >= 1 and torch.equal(coded.mask, torch.arange(layout.num_positions) < lengths[:, None])


def test_a_picture_always_has_the_same_codes_alone_and_in_a_batch(tokenizer):
    together = tokenizer.encode(pictures())
    assert torch.equal(together.ids, tokenizer.encode(pictures()).ids)
    alone = [tokenizer.encode(picture[None]) for picture in pictures()]
    assert together.lengths.tolist() == [int(tokens.lengths) for tokens in alone]
    same = [row.ids == tokens.ids for row, tokens in zip(map(together.row, range(6)), alone, strict=True)]
    assert torch.cat([flags.flatten() for flags in same]).float().mean() > 0.99  # a rounding edge may fall either way


def test_codes_look_up_to_the_features_of_training_and_decode(tokenizer):
    coded, tokens = tokenizer.quantize(pictures()), tokenizer.encode(pictures())
    missing = (0, tokenizer.layout.num_positions - tokens.ids.shape[1])
    features, mask = tokenizer.positions.arrange(
        F.pad(tokenizer.embed(tokens), (0, 0, *missing)), F.pad(tokens.mask, missing)
    )
    assert torch.equal(mask, coded.features_mask)
    torch.testing.assert_close(features[mask], coded.features[mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.decode(tokens), tokenizer.paint(coded).clamp(0, 1), atol=1e-4, rtol=0)


def test_any_prefix_decodes_where_training_cuts(tokenizer):
    tokens = tokenizer.encode(pictures())
    if not tokenizer.layout.prefix_decodable:
        with pytest.raises(ValueError, match="length must be left out"):
            tokenizer.encode(pictures(), length=3)
        return
    for length in (1, 3, tokenizer.layout.num_positions):
        prefix = tokenizer.encode(pictures(), length=length)
        assert torch.equal(prefix.ids, tokens.ids[:, :length])
        assert tokenizer.decode(prefix).shape == (6, 3, 24, 24)
    assert not torch.equal(tokenizer.decode(tokens.prefix(1)), tokenizer.decode(tokens))


def test_every_parameter_learns_and_a_code_book_moves_once(name):
    tokenizer = shaken(config_of(name, quantizer=VectorConfig(codebook_size=17, dim=4)))
    taught = []
    tokenizer.quantizer.register_forward_pre_hook(lambda module, _: taught.append(module.training))
    lengths, noise = drawn(tokenizer.positions, 6)
    coded = tokenizer.quantize(pictures(), lengths, noise=noise)
    loss = (tokenizer.paint(coded) - pictures()).square().mean() + sum(coded.losses.values())
    loss.backward()
    assert taught.count(True) == 1 and tokenizer.quantizer.training
    trained = dict(tokenizer.encoder.named_parameters(), **dict(tokenizer.positions.named_parameters()))
    still = [key for key, value in trained.items() if value.grad is None or not value.grad.any()]
    assert not still


def test_queries_read_a_context_and_other_layouts_refuse_it(name):
    config = config_of(name)
    layout = shaken(config).eval().positions
    assert layout.reads_context == (name in READ_CONTEXT)
    if not layout.reads_context:
        with pytest.raises(ValueError, match="text(.in_encoder)? must be"):
            config_of(name, text=TextConditionConfig(dim=8, depth=1)).build()
        return
    patches = Patches(torch.randn(2, 9, 16), ((3, 3),))
    extras = Extras(code=lambda features: features[..., :4])
    plain = layout(patches, extras).features
    for scale in (0, 1):
        told = layout(replace(patches, context=scale * torch.randn(2, 3, 16)), extras).features
        assert told.shape == plain.shape and not torch.allclose(told, plain, atol=1e-3)


def test_configs_survive_json(name):
    config = replace(TINY, layout=LAYOUTS[name])
    assert config_from_json(ImageTokenizerConfig, json.loads(json.dumps(config_to_json(config)))) == config


def test_it_builds_without_memory(name):
    grids = (((2, 2), (3, 3)),) if name == "two_grids" else (((3, 3),),)
    with torch.device("meta"):
        layout = LAYOUTS[name].build(16, 4, grids)
    assert all(parameter.is_meta for parameter in layout.parameters())


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - {"grid"}))
def test_a_sequence_of_codes_has_one_size_of_picture(name):
    with pytest.raises(ValueError, match="image_sizes_px must be one for a sequence of codes"):
        LAYOUTS[name].build(16, 4, (((3, 3),), ((3, 4),)))


@pytest.mark.slow
def test_it_learns_to_rebuild_four_pictures(name):
    torch.manual_seed(0)
    tokenizer, generator = config_of(name).build(), torch.Generator().manual_seed(0)
    corners = torch.zeros(4, 3, 24, 24)
    for index in range(4):
        corners[index, :, 12 * (index // 2) :, 12 * (index % 2) :][..., :12, :12] = 1
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    for _ in range(200):
        lengths, noise = tokenizer.positions.draw_lengths(4, generator), tokenizer.positions.draw_noise(4, generator)
        coded = tokenizer.quantize(corners, lengths, noise=noise)
        distances = tokenizer.paint(coded) - corners
        loss = distances.square().mean() + sum(coded.losses.values())
        if tokenizer.positions.learns_from_errors:
            again = tokenizer.quantize(corners, lengths, errors=distances.detach().abs().mean(dim=(1, 2, 3)))
            loss = loss + (tokenizer.paint(again) - corners).square().mean() + sum(again.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rebuilt = tokenizer.decode(tokenizer.eval().encode(corners))
    assert (rebuilt - corners).square().mean() < 0.25 * (corners - corners.mean(dim=0)).square().mean()
