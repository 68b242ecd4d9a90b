"""Features that are not quantized, and features of which each channel is quantized when all training is over."""

import math

import pytest
import torch

from rebus.tokenizers.quantizers.contract import Quantizer
from rebus.tokenizers.quantizers.none import ContinuousConfig
from rebus.tokenizers.quantizers.scalar_after_training import ScalarAfterTrainingConfig


def features(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_levels_are_means_of_a_normal_distribution_in_parts_of_equal_probability():
    quantizer = ScalarAfterTrainingConfig(dim=1, levels=8).build()
    deviations = quantizer.lookup(torch.arange(8)[None, :, None])[0, :, 0] * 3 / 5
    drawn = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).sort().values
    inside = [part[part.abs() < 3].mean() for part in drawn.chunk(8)]
    torch.testing.assert_close(deviations, torch.stack(inside), rtol=0, atol=5e-3)


def test_each_channel_takes_its_nearest_level():
    quantizer = ScalarAfterTrainingConfig(dim=3, levels=16).build()
    points = features(2, 500, 3, scale=3.0).requires_grad_()
    quantized = quantizer(points)
    values = quantizer.lookup(torch.arange(16)[None, :, None].expand(1, 16, 3))[0, :, 0]
    assert torch.equal(quantized.ids, (points[..., None] - values).abs().argmin(dim=-1))
    assert quantizer.codebook_sizes == (16, 16, 16) and not list(quantizer.parameters()) and not quantized.losses
    torch.testing.assert_close(quantizer.lookup(quantized.ids), quantized.features)
    quantized.features.sum().backward()
    assert points.grad is not None and (points.grad == 1).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(points).ids, quantized.ids)


def test_more_levels_lose_less_and_all_are_used():
    points, losses = features(1, 4000, 2, scale=5 / 3), []
    for levels in (4, 16, 64):
        quantized = ScalarAfterTrainingConfig(dim=2, levels=levels).build()(points)
        losses.append((quantized.features - points).square().mean().item())
        assert quantized.stats["code_usage"] == 1 and quantized.stats["code_perplexity"] > 0.95 * levels
    assert losses[1] < 0.3 * losses[0] and losses[2] < 0.3 * losses[1]


def test_features_pass_as_they_are():
    quantizer, points = ContinuousConfig(dim=4).build(), features(2, 7, 4).requires_grad_()
    quantized = quantizer(points)
    assert isinstance(quantizer, Quantizer) and quantizer.codebook_sizes == ()
    assert torch.equal(quantized.features, points) and not quantized.losses
    assert quantized.ids.shape == (2, 7, 0) and quantized.ids.dtype == torch.int64
    assert quantizer.perturb(quantized.ids, 0.5, torch.Generator()) is quantized.ids
    with pytest.raises(ValueError, match=r"not quantized have no codes to look up, got ids of \(2, 7, 0\)"):
        quantizer.lookup(quantized.ids)


def test_divergence_is_that_of_torch_and_leaves_masked_positions_out():
    torch.manual_seed(0)
    quantizer, points = ContinuousConfig(dim=4, kl=0.5).build().train(), features(3, 7, 4)
    assert quantizer.moments is not None
    torch.nn.init.normal_(quantizer.moments.weight, std=0.3)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3], [0]])
    quantized = quantizer(points, mask)
    means, logarithms = quantizer.moments(points).chunk(2, dim=-1)
    drawn, normal = torch.distributions.Normal(means, (logarithms / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    each = torch.distributions.kl_divergence(drawn, normal)[mask]
    torch.testing.assert_close(quantized.losses["kl"], 0.5 * each.mean())


def test_training_draws_and_encoding_takes_the_mean():
    quantizer, points = ContinuousConfig(dim=4, kl=0.1).build(), features(50, 20, 4)
    draws = [quantizer.train()(points, generator=torch.Generator().manual_seed(seed)).features for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert (draws[0] - points).std().item() == pytest.approx(math.exp(-3), rel=0.05)
    assert torch.equal(quantizer.eval()(points).features, points)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"levels": 1}, "levels must be two or more, got 1"),
        ({"reach": 0.0}, "reach and spread must be positive, got 0.0 and 3.0"),
        ({"spread": -1.0}, "reach and spread must be positive, got 5.0 and -1.0"),
    ],
)
def test_wrong_levels_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScalarAfterTrainingConfig(**options)
