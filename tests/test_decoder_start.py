from dataclasses import replace

import pytest
import torch

from rebus.model.code_condition import Codes, GridConditionConfig
from rebus.model.decoder import DecoderConfig
from rebus.model.grid_places import resized
from rebus.tokenizers.text_condition import TextConditionConfig
from rebus.tokenizers.tokens import Tokens
from rebus.train.decoder_start import start_from

CONFIG = DecoderConfig(latent_channels=3, latent_size=(8, 12), patch=4, dim=16, depth=2, num_heads=2)
LARGER = replace(CONFIG, latent_size=(16, 24), time_shift=2.0)
TEXT = TextConditionConfig(num_pieces=421, length=7, dim=16, depth=1, num_heads=2, in_encoder=False)


@pytest.fixture
def trained(layout):
    torch.manual_seed(0)
    decoder = CONFIG.build(layout, "cafe")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_((parameter + 0.2 * torch.randn_like(parameter)).bfloat16())
    return decoder.eval()


def test_one_of_the_same_size_starts_as_the_trained_one(trained, layout, tmp_path):
    trained.save(tmp_path)
    decoder = CONFIG.build(layout, "cafe")
    start_from(decoder, tmp_path)
    tokens = Tokens(torch.arange(6)[None, :, None].repeat(1, 1, 2), torch.tensor([6]), layout)
    noise = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(decoder.render_latents(tokens, noise, steps=2), trained.render_latents(tokens, noise, steps=2))


def test_one_of_a_larger_size_starts_with_places_in_between(trained, layout, tmp_path):
    trained.save(tmp_path)
    decoder = LARGER.build(layout, "cafe")
    start_from(decoder, tmp_path)
    weights, places = decoder.state_dict(), trained.state_dict()["patch_positions"]
    torch.testing.assert_close(weights.pop("patch_positions"), resized(places, (2, 3), (4, 6)))
    assert all(torch.equal(weight, trained.state_dict()[name]) for name, weight in weights.items())
    assert torch.equal(decoder.patch_positions[0], places[0])  # the corners stay where they are


def test_features_of_a_code_start_alike_for_all_patches_of_its_cell(trained, layout, tmp_path):
    trained.save(tmp_path)
    alike, apart = (
        replace(LARGER, condition=GridConditionConfig(per_patch=bool(each))).build(layout, "cafe") for each in (0, 1)
    )
    tokens = Tokens(torch.arange(6)[None, :, None].repeat(1, 1, 2), torch.tensor([6]), layout)
    noise = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    for decoder in (alike, apart):
        start_from(decoder, tmp_path)
    painted = alike.render_latents(tokens, noise, steps=1)
    torch.testing.assert_close(apart.render_latents(tokens, noise, steps=1), painted, atol=1e-5, rtol=0)
    with torch.no_grad():
        apart.embed_codes.streams[0].weight[:, 16:32] += 1  # of the patch at the top right
    seen = [one.embed_codes(tokens.ids) for one in (alike, apart)]
    patches = torch.zeros(1, 24, 16)
    cells = [one.condition(patches, Codes(codes, torch.ones(1, 6, dtype=torch.bool), (2, 3)), (4, 6)).tokens
             for one, codes in zip((alike, apart), seen, strict=True)]  # fmt: skip
    moved = (cells[0] != cells[1]).any(dim=-1).view(4, 6)
    assert moved[::2, 1::2].all() and moved.sum() == 6


def test_a_text_is_read_in_the_pieces_of_the_trained_one(layout, text_tokenizer, tmp_path):
    trained = replace(CONFIG, text=TEXT).build(layout, "cafe")
    trained.text.pieces = text_tokenizer
    trained.save(tmp_path)
    decoder = replace(LARGER, text=TEXT).build(layout, "cafe")
    start_from(decoder, tmp_path)
    assert torch.equal(decoder.text_ids(["a cat"], 1), trained.text_ids(["a cat"], 1))


@pytest.mark.parametrize("other", [replace(LARGER, dim=20), replace(LARGER, depth=1), replace(LARGER, flow_map=True)])
def test_one_that_differs_in_more_is_refused(other, trained, layout, tmp_path):
    trained.save(tmp_path)
    with pytest.raises(
        ValueError, match="start must be a decoder that differs in sizes, time_shift and condition.per_patch alone"
    ):
        start_from(other.build(layout, "cafe"), tmp_path)


def test_one_whose_codes_are_merged_otherwise_is_refused(layout, tmp_path):
    coarse, finer_codes = replace(CONFIG, patch=2, latent_size=(4, 6)), replace(layout, num_positions=24, grid=(4, 6))
    coarse.build(finer_codes, "cafe").save(tmp_path)
    with pytest.raises(ValueError, match="start must be"):
        start_from(replace(coarse, latent_size=(8, 12)).build(finer_codes, "cafe"), tmp_path)


def test_one_of_other_codes_is_refused(trained, layout, tmp_path):
    trained.save(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_hash must be cafe, as in training, got beef"):
        start_from(LARGER.build(layout, "beef"), tmp_path)


@pytest.mark.parametrize("sizes", [((8, 12), (16, 24)), ((4, 6),)])
def test_features_for_each_patch_take_one_size_of_finer_patches(sizes, layout):
    config = replace(CONFIG, latent_sizes=sizes, patch=2, condition=GridConditionConfig(per_patch=True))
    codes = replace(layout, num_positions=24, grid=(4, 6)) if sizes == ((4, 6),) else layout
    with pytest.raises(ValueError, match="condition.per_patch must be false where codes are finer than patches or"):
        config.build(codes, "cafe")
