"""The loss of reinforcement learning, against formulas written out code by code, as TRL states them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.train.grpo_loss import (
    AdaptiveKl,
    FixedKl,
    GrpoConfig,
    advantages,
    clipped_losses,
    kl_estimates,
    mean_over_codes,
)

ASYMMETRIC = GrpoConfig(clip_low=0.2, clip_high=0.28)
groups = st.integers(1, 4).flatmap(
    lambda number: st.lists(st.lists(st.floats(-5, 5), min_size=7, max_size=7), min_size=number, max_size=number)
)


def trl_loss(current, old, reference, rewards, config, beta, loss_type):
    """Loss of groups of completions that are all of one length, in plain Python."""
    total, num_tokens, per_row = 0.0, 0, []
    for group, group_rewards in enumerate(rewards):
        mean = sum(group_rewards) / len(group_rewards)
        std = math.sqrt(sum((one - mean) ** 2 for one in group_rewards) / (len(group_rewards) - 1))
        for sample, reward in enumerate(group_rewards):
            row = group * len(group_rewards) + sample
            worth = (reward - mean) / (std + 1e-4) if config.divide_by_spread else reward - mean
            losses = []
            for now, before, ref in zip(current[row], old[row], reference[row], strict=True):
                ratio = math.exp(now - before)
                clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
                kl = math.exp(ref - now) - (ref - now) - 1
                losses.append(-min(ratio * worth, clipped * worth) + beta * kl)
            total, num_tokens = total + sum(losses), num_tokens + len(losses)
            per_row.append(sum(losses) / len(losses))
    if loss_type == "grpo":  # mean over each completion, then over completions
        return sum(per_row) / len(per_row)
    longest = len(current[0])
    return total / {"bnpo": num_tokens, "dapo": num_tokens, "dr_grpo": len(per_row) * longest}[loss_type]


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("config", [ASYMMETRIC, GrpoConfig(divide_by_spread=False)], ids=["asymmetric", "unscaled"])
def test_the_loss_is_that_of_trl_whichever_way_it_averages(config, loss_type):
    generator = torch.Generator().manual_seed(0)
    current, old, reference = (torch.randn(6, 5, generator=generator) * 0.3 - 2 for _ in range(3))
    rewards = torch.rand(2, 3, generator=generator)
    worth = advantages(rewards, divide_by_spread=config.divide_by_spread).flatten()
    losses, clipped = clipped_losses(current, old, worth, config)
    kept, num_targets = torch.ones(6, dtype=torch.bool), torch.tensor([30.0])
    ours = mean_over_codes(losses + 0.07 * kl_estimates(current, reference), kept, num_targets)
    lists = (one.double().tolist() for one in (current, old, reference, rewards))
    assert ours.item() == pytest.approx(trl_loss(*lists, config, 0.07, loss_type), rel=1e-5)
    assert 0 < clipped.float().mean() < 1


@given(groups)
def test_advantages_of_a_group_have_mean_zero_and_spread_one(rewards):
    values = torch.tensor(rewards, dtype=torch.float64)
    worth = advantages(values, divide_by_spread=True)
    torch.testing.assert_close(worth.mean(dim=1), torch.zeros(len(values), dtype=torch.float64), atol=1e-6, rtol=0)
    spread = values.std(dim=1)
    torch.testing.assert_close(worth.std(dim=1), spread / (spread + 1e-4))


@given(groups, st.integers(0, 6))
def test_a_failed_reward_changes_nothing_for_the_others(rewards, failed):
    values = torch.tensor(rewards, dtype=torch.float64)
    others = [index for index in range(7) if index != failed]
    holed = values.clone()
    holed[:, failed] = float("nan")
    for divide in (True, False):
        worth = advantages(holed, divide_by_spread=divide)
        assert (worth[:, failed] == 0).all()
        torch.testing.assert_close(worth[:, others], advantages(values[:, others], divide_by_spread=divide))


def test_groups_that_are_alike_or_failed_are_worth_nothing():
    nan = float("nan")
    rewards = torch.tensor([[0.1] * 3, [nan, nan, nan], [nan, 0.7, nan]])
    worth = advantages(rewards, divide_by_spread=True)
    assert worth.abs().max() < 1e-3 and (worth[1:] == 0).all()


def test_on_policy_the_gradient_is_that_of_the_plain_policy_gradient():
    current = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    worth = torch.tensor([1.5, -0.5])
    losses, clipped = clipped_losses(current, current.detach(), worth, GrpoConfig())
    losses.sum().backward()
    torch.testing.assert_close(current.grad, -worth.unsqueeze(1).expand(2, 2))
    assert not clipped.any()


def test_a_code_that_went_far_enough_its_way_has_no_gradient_and_one_that_went_astray_has():
    ratios = torch.tensor([[1.3, 0.7, 1.1], [1.3, 0.7, 1.1]])
    current = ratios.log().requires_grad_()
    losses, clipped = clipped_losses(current, torch.zeros(2, 3), torch.tensor([1.0, -1.0]), ASYMMETRIC)
    losses.sum().backward()
    assert clipped.tolist() == [[True, False, False], [False, True, False]]
    assert (current.grad == 0).tolist() == clipped.tolist()


def test_the_estimate_of_the_distance_is_right_in_the_mean_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    current, reference = torch.randn(2, 7, generator=generator).log_softmax(dim=1).unsqueeze(1)
    estimates = kl_estimates(current, reference)
    assert (estimates >= 0).all()
    exact = (current.exp() * (current - reference)).sum()
    torch.testing.assert_close((current.exp() * estimates).sum(), exact)


def test_pictures_that_failed_are_in_no_mean():
    values = torch.tensor([[1.0, 3.0], [float("nan"), 5.0]])
    kept = torch.tensor([True, False])
    assert mean_over_codes(values, kept, torch.tensor([2.0])) == 2
    assert mean_over_codes(values, ~kept & kept, torch.tensor([0.0])) == 0


def test_the_adaptive_weight_settles_at_its_target_and_a_fixed_one_stays():
    adaptive, weight = AdaptiveKl(weight=0.1, target=0.5, gain=0.5), 0.1
    for _ in range(200):
        weight = adaptive.following(weight, kl=0.2 / weight)  # the heavier, the nearer
    assert 0.2 / weight == pytest.approx(0.5, rel=0.01)
    assert adaptive.following(1.0, kl=100.0) == pytest.approx(1.1) and adaptive.following(1.0, kl=0.0) == 0.9
    assert FixedKl(weight=0.1).following(0.1, kl=100.0) == 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrpoConfig(clip_low=1.0), r"clip_low must lie in \(0, 1\), got 1.0"),
        (lambda: GrpoConfig(clip_high=0.0), "clip_high must be positive and finite, got 0.0"),
        (lambda: FixedKl(weight=-1.0), "weight must be at least 0 and finite, got -1.0"),
        (lambda: AdaptiveKl(weight=0.0), "weight must be positive, got 0.0"),
        (lambda: AdaptiveKl(target=0.0), "target must be positive, got 0.0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
