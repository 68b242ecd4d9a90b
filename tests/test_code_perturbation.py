"""Wrong codes before the decoder: which, how many, and what gradients make of them."""

import pytest
import torch

from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.tokens import Tokens
from rebus.train.code_perturbation import CodePerturbationConfig, perturbed_ids, with_codes


def build(layout, quantizer):
    torch.manual_seed(0)
    return ImageTokenizerConfig(
        image_size_px=24,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        layout=layout,
        quantizer=quantizer,
        pixel_decoder=VitPixelDecoderConfig(dim=12, depth=1, num_heads=2),
    ).build()


GRID = (GridConfig(), FiniteScalarConfig(levels=(5, 3)))
NESTED = (NestedQueriesConfig(num_queries=8, depth=1, num_heads=2), VectorConfig(codebook_size=19, dim=6))


def test_the_rate_falls_in_a_straight_line():
    assert [CodePerturbationConfig(rate=0.5).rate_at(step) for step in (0, 10**6)] == [0.5, 0.5]
    falling = CodePerturbationConfig(rate=0.8, fall=(10, 20))
    rates = [falling.rate_at(step) for step in (0, 10, 15, 20, 99)]
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.0, 0.0])
    for options, message in (({"share": 1.5}, "share must be in"), ({"fall": (5, 5)}, "fall must be two steps")):
        with pytest.raises(ValueError, match=message):
            CodePerturbationConfig(**options)


def test_a_picture_draws_from_its_seed_alone():
    tokenizer = build(*GRID)
    ids, seeds = torch.randint(15, (200, 9, 1)), torch.arange(200)
    config = CodePerturbationConfig(share=0.3, rate=0.5)
    wrong = perturbed_ids(ids, tokenizer, config, 0, seeds)
    assert torch.equal(wrong[50:70], perturbed_ids(ids[50:70], tokenizer, config, 0, seeds[50:70]))
    assert not torch.equal(wrong, perturbed_ids(ids, tokenizer, config, 0, seeds + 200))
    differs = (wrong != ids)[..., 0].float().mean(dim=1)
    assert 0.2 < (differs > 0).float().mean() < 0.4
    assert 0.35 < differs[differs > 0].mean() < 0.6  # half, of which a fifteenth is drawn again


def test_without_a_share_or_a_rate_the_quantizer_is_not_asked(monkeypatch):
    tokenizer = build(*GRID)
    monkeypatch.setattr(tokenizer.quantizer, "perturb", None)
    ids, seeds = torch.randint(15, (20, 9, 1)), torch.arange(20)
    for config in (CodePerturbationConfig(share=0.0), CodePerturbationConfig(share=1.0, rate=0.9, fall=(0, 7))):
        assert torch.equal(perturbed_ids(ids, tokenizer, config, 7, seeds), ids)


@pytest.mark.parametrize("parts", [GRID, NESTED])
def test_the_decoder_sees_the_wrong_codes_and_gradients_pass_straight_through(parts):
    tokenizer, images = build(*parts).eval(), torch.rand(4, 3, 24, 24)
    coded = tokenizer.quantize(images)
    assert torch.equal(with_codes(coded, coded.ids, tokenizer).features, coded.features)
    config = CodePerturbationConfig(share=0.5, rate=0.5)
    ids = perturbed_ids(coded.ids, tokenizer, config, 0, torch.tensor([0, 1, 2, 4]))
    spoilt = (ids != coded.ids).any(dim=1)[:, 0]
    assert spoilt.any() and not spoilt.all()
    painted = with_codes(coded, ids, tokenizer)
    assert torch.equal(painted.features[~spoilt], coded.features[~spoilt])
    tokens = Tokens(ids, torch.full((4,), ids.shape[1]), tokenizer.layout)
    torch.testing.assert_close(tokenizer.paint(painted).clamp(0, 1), tokenizer.decode(tokens), rtol=1e-4, atol=1e-5)
    straight = torch.autograd.grad(coded.features.sum(), tokenizer.to_code.weight, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(painted.features.sum(), tokenizer.to_code.weight), straight)
