"""The adversarial term: plain arithmetic, and who gets which gradients."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rebus.tokenizers.supervision.adversarial import AdversarialConfig, balance, lecam
from rebus.tokenizers.supervision.discriminator import PatchDiscriminator, hinge
from rebus.tokenizers.supervision.supervision import SupervisionConfig

SMALL = {"dim": 8, "depth": 1, "start": 5}


def build(**options):
    torch.manual_seed(0)
    return AdversarialConfig(**SMALL, **options).build()


def gradients(module):
    return [parameter.grad for parameter in module.parameters()]


def test_before_the_start_nothing_runs(inputs):
    term, runs = build(lecam=0.5), []
    term.discriminator.register_forward_hook(lambda *_: runs.append(1))
    before, after = term(inputs(step=4)), term(inputs(step=5))
    assert list(before) == list(after) == ["adversarial", "discriminator", "lecam"]
    assert not any(value.any() or value.requires_grad for value in before.values())
    assert len(runs) == 2 and after["discriminator"] > 0
    runs.clear()
    term(inputs(step=4))
    assert not runs


def test_hinge_and_lecam_are_what_the_papers_say():
    true, rebuilt = torch.tensor([[[2.0, 0.5]], [[-1.0, 1.0]]]), torch.tensor([[[-3.0, 0.5]], [[0.0, -1.0]]])
    torch.testing.assert_close(hinge(true, rebuilt), torch.tensor(((0 + 0.5 + 2 + 0) / 4 + (0 + 1.5 + 1 + 0) / 4) / 2))
    mean_true, mean_rebuilt = torch.tensor(0.25), torch.tensor(-0.5)
    above = (2.5**2 + 1.0**2 + 0 + 1.5**2) / 4
    below = (3.25**2 + 0 + 0.25**2 + 1.25**2) / 4
    torch.testing.assert_close(lecam(true, rebuilt, mean_true, mean_rebuilt), torch.tensor(above + below))


def test_the_averages_follow_in_training_and_are_saved(inputs):
    term, taught = build(lecam=1.0, lecam_decay=0.75), inputs(step=9)
    true, rebuilt = (term.discriminator(images).mean() for images in (taught.images, taught.rebuilt))
    term.eval()(taught)
    assert not term.mean_true
    term.train()(taught)
    term(taught)
    torch.testing.assert_close(term.mean_true, 0.4375 * true)  # 0.25 and 0.75 * 0.25
    torch.testing.assert_close(term.mean_rebuilt, 0.4375 * rebuilt)
    assert {"mean_true", "mean_rebuilt"} <= set(term.state_dict())


def test_each_side_gets_its_own_gradients(inputs):
    term, taught = build(weight=0.5), inputs(step=5)
    picture = taught.rebuilt.clone().requires_grad_()
    taught = replace(taught, rebuilt=picture)
    losses = term(taught)
    losses["adversarial"].backward(retain_graph=True)
    assert all(gradient is None for gradient in gradients(term.discriminator))
    fooled = picture.grad.clone()
    losses["discriminator"].backward()
    torch.testing.assert_close(picture.grad, fooled)  # nothing came to it
    learned = [gradient.clone() for gradient in gradients(term.discriminator)]

    # What two optimizers in turn would see.
    term.zero_grad()
    alone = picture.detach().clone().requires_grad_()
    (-0.5 * term.discriminator(alone).mean()).backward()
    torch.testing.assert_close(fooled, alone.grad)
    term.zero_grad()
    hinge(term.discriminator(taught.images), term.discriminator(picture.detach())).backward()
    torch.testing.assert_close(learned, gradients(term.discriminator))


def test_the_adaptive_weight_makes_both_pull_alike(inputs):
    torch.manual_seed(0)
    hidden, last, other = torch.rand(6, 64, 4), nn.Linear(4, 3), nn.Linear(2, 2)
    rebuilt = last(hidden).transpose(1, 2).reshape(6, 3, 8, 8)
    taught = inputs(step=5)
    rebuilding = 3 * (rebuilt - taught.images).square().mean()
    # A term that does not depend on the last layer has no say.
    earlier = {"pixel_l2": rebuilding, "text": other(torch.ones(1, 2)).sum()}
    term = build(weight=0.25, adaptive=True, last_layer="last")
    assert term.last_layer == "last"
    taught = replace(taught, rebuilt=rebuilt, earlier=earlier, last_weight=last.weight)
    fooling = -term.discriminator(rebuilt).mean()
    norms = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in (rebuilding, fooling)]
    loss = term(taught)["adversarial"]
    torch.testing.assert_close(loss, 0.25 * norms[0] / (norms[1] + 1e-4) * fooling)
    (pull,) = torch.autograd.grad(loss, last.weight)
    torch.testing.assert_close(pull.norm(), 0.25 * norms[0], rtol=1e-2, atol=0)
    assert balance(1e9 * last.weight.sum(), 0 * last.weight.sum(), last.weight) == 1e4
    with pytest.raises(ValueError, match="adaptive must be false where the last layer is frozen"):
        balance(rebuilding, fooling, last.weight.detach())


def test_a_picture_scores_the_same_in_any_company():
    torch.manual_seed(0)
    discriminator, images = PatchDiscriminator(8, 2), torch.rand(4, 3, 16, 16)
    scores = discriminator(images)
    assert scores.shape == (4, 2, 2)
    torch.testing.assert_close(scores[1:2], discriminator(images[1:2]))


@pytest.mark.slow
def test_one_step_for_both_makes_true_and_rebuilt_alike(inputs):
    """The discriminator learns to tell them apart; a painter that learns with it undoes that."""
    separable = {}
    for rate in (0.0, 0.02):
        term, taught = build(weight=1.0), inputs(batch=8, step=5)
        shift = nn.Parameter(torch.full((1, 3, 1, 1), 0.7))
        groups = [{"params": term.parameters()}, {"params": [shift], "lr": rate}]
        optimizer = torch.optim.Adam(groups, lr=2e-3, betas=(0.5, 0.9))
        told = []
        for _ in range(60):
            losses = term(replace(taught, rebuilt=taught.images + shift))
            optimizer.zero_grad()
            (losses["adversarial"] + losses["discriminator"]).backward()
            optimizer.step()
            told.append(losses["discriminator"].item())
        separable[rate] = sum(told[-20:]) / 20
    assert shift.abs().max() < 0.35
    assert separable[0.0] < 0.01 and separable[0.02] > 0.4


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="supervision.adversarial.dim must be a multiple of 8, got 12"):
        AdversarialConfig(dim=12).build()
    with pytest.raises(ValueError, match="adaptive must be false where no other term rebuilds"):
        SupervisionConfig(pixel_l1=0.0, pixel_l2=0.0, adversarial=AdversarialConfig(adaptive=True))
