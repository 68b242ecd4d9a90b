"""Gradients that pass rounding by, and softmaxes over all codes, against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from rebus.tokenizers.quantizers.code_softmax import code_entropies, index_gradient
from rebus.tokenizers.quantizers.gradient_estimators import pass_gradients
from rebus.tokenizers.quantizers.index_backprop import IndexBackpropConfig


def features(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rotation_is_that_of_the_library_and_gives_the_codes_themselves():
    points, codes, weights = (features(9, 5, seed=seed) for seed in range(3))
    points.requires_grad_()
    rotated = pass_gradients(points, codes, "rotation")
    assert torch.equal(rotated, codes)
    (gradient,) = torch.autograd.grad((rotated * weights).sum(), points)
    (expected,) = torch.autograd.grad((rotate_to(points, codes) * weights).sum(), points)
    torch.testing.assert_close(gradient, expected)


def test_gradients_are_finite_where_a_code_is_opposite_to_its_feature_or_either_is_zero():
    codes = torch.tensor([[3.0, -4.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    points = torch.stack([-2 * codes[0], torch.zeros(3), torch.ones(3), torch.zeros(3)]).requires_grad_()
    rotated = pass_gradients(points, codes, "rotation")
    assert torch.equal(rotated, codes)
    rotated.sum().backward()
    assert points.grad is not None and points.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("normalized", [False, True])
def test_index_backprop_has_the_gradient_of_its_formula(monkeypatch, normalized, temperature):
    monkeypatch.setattr("rebus.tokenizers.quantizers.code_softmax.rows_at_once", lambda *_: 7)
    config = IndexBackpropConfig(codebook_size=23, dim=4, normalized=normalized, temperature=temperature)
    quantizer, points, weights = config.build().train(), features(2, 20, 4), features(2, 20, 4, seed=2).double()
    quantized = quantizer(points.requires_grad_())
    loss = sum(quantized.losses.values()) + (quantized.features * weights).sum()
    gradients = torch.autograd.grad(loss, [points, quantizer.codes.weight])

    point, table = points.detach().double().requires_grad_(), quantizer.codes.weight.detach().double().requires_grad_()
    scale = (lambda each: F.normalize(each, dim=-1)) if normalized else (lambda each: each)
    vectors, codes = scale(point), scale(table)
    soft = (vectors @ codes.T / temperature).softmax(dim=-1)
    hard = F.one_hot(soft.argmax(dim=-1), 23).double()
    one, code = (hard - soft.detach() + soft) @ codes, hard @ codes
    terms = (one - vectors).square(), (code.detach() - vectors).square(), 0.25 * (code - vectors.detach()).square()
    torch.testing.assert_close(
        torch.stack([*quantized.losses.values()]).double(), torch.stack([t.mean() for t in terms])
    )
    assert torch.equal(quantized.ids[..., 0], hard.argmax(dim=-1))
    expected = torch.autograd.grad(sum(term.mean() for term in terms) + (one * weights).sum(), [point, table])
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=1e-4, atol=1e-5)
    assert all((rows != 0).any() for rows in gradients[1]), "every code learns"


def test_entropies_and_their_gradients_are_those_of_the_formula(monkeypatch):
    monkeypatch.setattr("rebus.tokenizers.quantizers.code_softmax.rows_at_once", lambda *_: 5)
    points = features(12, 3).double().requires_grad_()
    codes = features(7, 3, seed=2).double().requires_grad_()

    def entropies(points, codes):
        return torch.stack(code_entropies(points, codes, (torch.arange(12) < 9).double(), 0.7))

    chances = (-(points[:9, None] - codes).square().sum(dim=-1) / 0.7).softmax(dim=-1)
    mean = chances.mean(dim=0)
    expected = -(chances * chances.log()).sum(dim=-1).mean(), -(mean * mean.log()).sum()
    torch.testing.assert_close(entropies(points, codes), torch.stack(expected))
    assert torch.autograd.gradcheck(entropies, (points, codes))


@pytest.mark.parametrize("num_codes", [100, 1000])
def test_nothing_of_features_times_codes_is_kept(num_codes):
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    points, codes = features(300, 4).requires_grad_(), features(num_codes, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        index_gradient(points, codes, 1.0).sum().backward()
        code_entropies(points, codes, torch.ones(300), 1.0)[1].backward()
    assert 0 < max(sizes) <= 4 * max(300, num_codes)
