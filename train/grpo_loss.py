"""Group relative policy optimization of codes: what each picture of a group is worth, and the loss of its codes.

A group is several pictures drawn for one prompt; their own mean is what a reward is measured against, so that no
network has to learn it. A picture always has its N codes, neither more nor fewer, for the grammar draws it: nothing is
gained by length, none can be cut short, and the ways to average over codes that TRL tells apart (``grpo``, ``bnpo``,
``dapo``, ``dr_grpo``) are all one.

Source: Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
https://arxiv.org/abs/2402.03300, eq. 3 and 4; for pictures Geng et al., "X-Omni: Reinforcement Learning Makes Discrete
Autoregressive Image Generative Models Great Again", https://arxiv.org/abs/2507.22058.
Differs: a picture whose reward failed is in no mean and no loss.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SMALLEST_SPREAD = 1e-4
"""Added to a group's spread before dividing by it, as in TRL."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """How rewards become advantages, and how far one rollout may move the policy."""

    divide_by_spread: bool = True
    """Whether advantages are divided by their group's standard deviation. Without it, groups in which rewards differ
    little count little: Liu et al., "Understanding R1-Zero-Like Training", https://arxiv.org/abs/2503.20783, sec. 3.1,
    find it the less biased way."""
    least_spread: float = 0.0
    """Groups whose rewards have a smaller standard deviation are left out of the update: they cost as much as others
    and teach nothing. Yu et al., "DAPO", https://arxiv.org/abs/2503.14476, sec. 3.2, draw others instead."""
    clip_low: float = 0.2
    """How far below 1 the ratio of a code's probabilities, after and before, still has a gradient."""
    clip_high: float = 0.2
    """How far above 1; more than below keeps rare codes alive: Yu et al., "DAPO", https://arxiv.org/abs/2503.14476,
    sec. 3.1."""

    def __post_init__(self) -> None:
        if not 0 <= self.least_spread < float("inf"):
            raise ValueError(f"least_spread must be at least 0 and finite, got {self.least_spread}")
        if not 0 < self.clip_low < 1:
            raise ValueError(f"clip_low must lie in (0, 1), got {self.clip_low}")
        if not 0 < self.clip_high < float("inf"):
            raise ValueError(f"clip_high must be positive and finite, got {self.clip_high}")


@dataclass(frozen=True, kw_only=True)
class FixedKl:
    """The distance from the reference always weighs the same."""

    weight: float = 0.01
    """Of the distance of a code in nats, beside its advantage."""

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def following(self, weight: float, kl: float) -> float:
        """Returns the weight after a rollout with a mean distance ``kl``."""
        del kl
        return weight


@dataclass(frozen=True, kw_only=True)
class AdaptiveKl:
    """The weight of the distance from the reference rises where the distance is above a target, else it falls.

    Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences", https://arxiv.org/abs/1909.08593,
    sec. 2.2.
    Differs: the distance is that of a code, not of a whole continuation.
    """

    weight: float = 0.01
    """At the start."""
    target: float = 0.05
    """Distance of a code in nats that the weight settles at."""
    gain: float = 0.1
    """How fast it gets there: a rollout changes the weight by at most a fifth of this share."""

    def __post_init__(self) -> None:
        _check_weight(self.weight)
        for name in ("weight", "target", "gain"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def following(self, weight: float, kl: float) -> float:
        """Returns the weight after a rollout with a mean distance ``kl``."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return weight * (1 + self.gain * error)


KlWeight = FixedKl | AdaptiveKl


@dataclass(frozen=True, kw_only=True)
class EntropyGuard:
    """Holds up the entropy of the codes where it falls too low, so that groups stay diverse enough to learn from."""

    share: float = 0.5
    """Of the reference's entropy along the same pictures; above it, the guard does nothing."""
    weight: float = 0.1
    """Of what is lacking, in nats."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.weight < 0:
            got = f"{self.share} and {self.weight}"
            raise ValueError(f"share must lie in [0, 1] and weight be at least 0, got {got}")

    def loss(self, entropy: Float[Tensor, ""], reference: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Returns what is to be lowered."""
        return self.weight * (self.share * reference - entropy).clamp_min(0)


def advantages(rewards: Float[Tensor, "groups samples"], *, divide_by_spread: bool) -> Float[Tensor, "groups samples"]:
    """Returns how far each reward lies above the mean of its group, perhaps in standard deviations of the group.

    A failed reward is NaN; it has the advantage 0 and is in no mean.
    """
    there = ~rewards.isnan()
    number = there.sum(dim=1, keepdim=True)
    mean = rewards.nansum(dim=1, keepdim=True) / number.clamp_min(1)
    centred = torch.where(there, rewards - mean, 0.0)
    if not divide_by_spread:
        return centred
    variance = centred.square().sum(dim=1, keepdim=True) / (number - 1).clamp_min(1)
    return centred / (variance.sqrt() + SMALLEST_SPREAD)


def kl_estimates(
    current: Float[Tensor, "rows codes"], reference: Float[Tensor, "rows codes"]
) -> Float[Tensor, "rows codes"]:
    """Returns an estimate for each code of the distance of the current policy, which drew it, from the reference.

    Never negative, and right in the mean: k3 of Schulman, "Approximating KL Divergence",
    http://joschu.net/blog/kl-approx.html.

    Args:
        current: log-probabilities of the codes.
        reference: the same under the reference.
    """
    difference = reference - current
    return difference.expm1() - difference


def clipped_losses(
    current: Float[Tensor, "rows codes"],
    old: Float[Tensor, "rows codes"],
    worth: Float[Tensor, " rows"],
    config: GrpoConfig,
) -> tuple[Float[Tensor, "rows codes"], Bool[Tensor, "rows codes"]]:
    """Returns the loss of each code, and whether it was clipped: whether the policy has gone far enough its way.

    Args:
        current: log-probabilities of the codes under the policy as it is.
        old: the same under the policy that drew them.
        worth: advantages of the pictures.
        config: where to clip.
    """
    ratio, worth = (current - old).exp(), worth.unsqueeze(1)
    low, high = 1 - config.clip_low, 1 + config.clip_high
    clipped = ((ratio < low) & (worth < 0)) | ((ratio > high) & (worth > 0))
    return -torch.minimum(ratio * worth, ratio.clamp(low, high) * worth), clipped


def mean_over_codes(
    values: Float[Tensor, "rows codes"], kept: Bool[Tensor, " rows"], num_targets: Float[Tensor, " 1"]
) -> Float[Tensor, ""]:
    """Returns the sum over the codes of the pictures that are kept, divided by a number of codes.

    Args:
        values: one for each code.
        kept: pictures whose reward did not fail.
        num_targets: the codes of such pictures, or their mean over the processes that share a step.
    """
    return torch.where(kept.unsqueeze(1), values, 0.0).sum() / num_targets.clamp_min(1).squeeze()


def _check_weight(weight: float) -> None:
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight must be at least 0 and finite, got {weight}")
