import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.tokenizers.quantizers.contract import usage_stats
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.vector import VectorConfig

CONFIGS = [FiniteScalarConfig(levels=(7, 4, 3)), VectorConfig(codebook_size=29, dim=3)]


@pytest.fixture(params=CONFIGS, ids=["finite_scalar", "vector"])
def quantizer(request):
    return request.param.build().eval()


def features(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_lookup_returns_what_was_quantized(quantizer):
    quantized = quantizer(features(5, 11, 3))
    torch.testing.assert_close(quantizer.lookup(quantized.ids), quantized.features)


def test_every_code_quantizes_to_itself(quantizer):
    ids = torch.arange(quantizer.codebook_sizes[0])[None, :, None]
    codes = quantizer.lookup(ids)
    if isinstance(quantizer, type(FiniteScalarConfig(levels=(3,)).build())):
        # Invert the bound: a feature far out in a channel reaches the outermost level.
        assert codes.unique(dim=1).shape[1] == quantizer.codebook_sizes[0]
        assert codes.abs().max() == 1
    else:
        assert torch.equal(quantizer(codes).ids, ids)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.integers(0, 1000))
def test_finite_scalar_ids_are_in_range_and_inverse(levels, seed):
    quantizer = FiniteScalarConfig(levels=tuple(levels)).build()
    quantized = quantizer(features(2, 50, len(levels), seed=seed, scale=3))
    assert quantized.ids.min() >= 0 and quantized.ids.max() < quantizer.codebook_sizes[0]
    torch.testing.assert_close(quantizer.lookup(quantized.ids), quantized.features)


def test_finite_scalar_reaches_every_code():
    quantizer = FiniteScalarConfig(levels=(4, 3)).build()
    assert quantizer(features(1, 4000, 2, scale=2)).ids.unique().numel() == 12


def test_vector_search_is_nearest_by_brute_force():
    quantizer = VectorConfig(codebook_size=31, dim=5).build().eval()
    points = features(3, 13, 5)
    distances = (points[:, :, None] - quantizer.codebook).norm(dim=-1)
    assert torch.equal(quantizer(points).ids[..., 0], distances.argmin(dim=-1))


def test_vector_code_book_gathers_where_the_features_are():
    quantizer = VectorConfig(codebook_size=48, dim=2).build().train()
    centres = 5 * features(1, 16, 2, seed=3)
    errors = []
    for step in range(500):
        points = centres.repeat(1, 8, 1) + 0.05 * features(1, 128, 2, seed=step)
        quantized = quantizer(points)
        errors.append((quantized.features - points).norm(dim=-1).mean().item())
    assert errors[-1] < 0.1 * errors[0]


def test_plain_ground_does_not_swallow_the_code_book():
    quantizer = VectorConfig(codebook_size=24, dim=2).build().train()
    things = 3 + features(1, 6, 2, seed=1)
    points = torch.cat([torch.zeros(1, 200, 2), things], dim=1)
    for _ in range(20):
        quantized = quantizer(points)
    assert quantized.ids[0, 200:].unique().numel() == 6


def test_vector_code_book_stands_still_in_eval():
    quantizer = VectorConfig(codebook_size=16, dim=2).build().eval()
    before = quantizer.codebook.clone()
    quantizer(features(1, 9, 2))
    assert torch.equal(quantizer.codebook, before)


def test_gradients_pass_straight_through(quantizer):
    inputs = features(2, 3, 3).requires_grad_()
    quantizer(inputs).features.square().sum().backward()
    assert inputs.grad is not None and inputs.grad.abs().sum() > 0


def test_perturb_replaces_the_asked_share_and_keeps_missing_codes(quantizer):
    ids = torch.zeros(40, 50, 1, dtype=torch.long)
    ids[:, -5:] = -1
    changed = quantizer.perturb(ids, 0.3, torch.Generator().manual_seed(1))
    assert (changed[:, -5:] == -1).all()
    share = (changed[:, :-5] != 0).float().mean().item()
    size = quantizer.codebook_sizes[0]
    assert abs(share - 0.3 * (size - 1) / size) < 0.04
    assert changed.max() < size
    assert torch.equal(quantizer.perturb(ids, 0.0, torch.Generator()), ids)


def test_masked_positions_count_in_no_statistic():
    ids = torch.tensor([[0, 1, 2, 3]])
    stats = usage_stats(ids, 8, torch.tensor([[True, True, False, False]]))
    torch.testing.assert_close(stats["code_usage"], torch.tensor(0.25))
    torch.testing.assert_close(stats["code_perplexity"], torch.tensor(2.0))


def test_levels_below_two_are_refused():
    with pytest.raises(ValueError, match="levels must be two or more"):
        FiniteScalarConfig(levels=(5, 1)).build()
