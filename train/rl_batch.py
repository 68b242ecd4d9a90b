"""What a rollout leaves behind for the updates: groups as plain values, and batches of them as tensors."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rebus.train.code_policy import CodeRows
from rebus.train.grpo_loss import GrpoConfig, advantages
from rebus.train.rewards.scoring import Scores

_ALIKE = 1e-6
"""Standard deviation of rewards below which a group has nothing to teach."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The pictures drawn for one prompt; plain values, which go into checkpoints and to other processes."""

    number: int
    """Which of the step's groups it is."""
    prompt: str
    codes: list[list[int]]
    """Vocabulary ids of each picture."""
    totals: list[float | None]
    """Rewards of each picture, weighted and added; None where one failed."""
    rewards: dict[str, list[float | None]]
    """Each reward by itself; None where it failed or has nothing to say."""
    old: list[list[float]]
    """Log-probabilities of the codes under the policy that drew them."""
    reference: list[list[float]]
    """The same under the reference."""
    entropy: float
    """Mean entropy of the reference along these pictures."""
    kl: float
    """Mean distance of the policy that drew from the reference, of a code."""


@dataclass(frozen=True, eq=False)
class RlBatch:
    """Pictures with what they are worth."""

    rows: CodeRows
    old: Float[Tensor, "rows codes"]
    reference: Float[Tensor, "rows codes"]
    advantages: Float[Tensor, " rows"]
    kept: Bool[Tensor, " rows"]
    """Pictures whose rewards did not fail, of groups whose rewards differ enough."""
    reference_entropy: Float[Tensor, ""]
    kl_weight: Float[Tensor, ""]
    num_targets: Float[Tensor, " 1"]
    """Codes of the rollout's pictures whose rewards did not fail, or the mean over processes that share a step."""
    metrics: dict[str, Float[Tensor, ""]]
    """Of the rollout."""


def informative(groups: Sequence[Group], config: GrpoConfig) -> list[Group]:
    """Returns the groups whose rewards differ enough; the first if none do, of which the loss then takes no notice."""
    return [group for group in groups if _spread(group) >= config.least_spread] or [*groups[:1]]


def rl_batch(
    rows: CodeRows, taught: Sequence[Group], groups: Sequence[Group], kl_weight: float, config: GrpoConfig
) -> RlBatch:
    """Returns groups as a batch.

    Args:
        rows: the codes of those that the update learns from, after their prompts.
        taught: these groups, all of one size.
        groups: all groups of the rollout; a group that is left out makes the others no louder.
        kl_weight: of the distance from the reference.
        config: which groups differ enough, and what advantages are.
    """
    totals = torch.tensor([[float("nan") if one is None else one for one in group.totals] for group in taught])
    differs = torch.tensor([_spread(group) >= config.least_spread for group in taught])
    num_kept = sum(one is not None for group in groups for one in group.totals)
    return RlBatch(
        rows=rows,
        old=torch.tensor([row for group in taught for row in group.old]),
        reference=torch.tensor([row for group in taught for row in group.reference]),
        advantages=advantages(totals, divide_by_spread=config.divide_by_spread).flatten(),
        kept=(~totals.isnan() & differs.unsqueeze(1)).flatten(),
        reference_entropy=torch.tensor(statistics.fmean(group.entropy for group in taught)),
        kl_weight=torch.tensor(kl_weight),
        num_targets=torch.tensor([float(num_kept * rows.codes.shape[1])]),
        metrics={name: torch.tensor(value) for name, value in _measures(groups).items()},
    )


def plain(values: Sequence[float | None]) -> list[float | None]:
    """Returns rewards as JSON knows them: None for one that failed."""
    return [None if value is None or value != value else value for value in values]


def means(scores: Scores) -> dict[str, float]:
    """Returns the mean of the totals, of each reward over the pictures it speaks of, and the share that failed."""
    told = {"reward": plain(scores.totals), **{name: plain(values) for name, values in scores.each.items()}}
    found = {name: [value for value in values if value is not None] for name, values in told.items()}
    failed = 1 - len(found["reward"]) / len(scores.totals)
    return {**{name: statistics.fmean(values) for name, values in found.items() if values}, "failed": failed}


def _measures(groups: Sequence[Group]) -> dict[str, float]:
    """Returns metrics that all batches have.

    A reward that speaks of some prompts only, as that of signs, has two: ``sign_sum``, its sum over all pictures
    divided by their number, and ``sign_share``, the share of pictures that it speaks of; one divided by the other is
    its mean, also of means over many steps.
    """
    all_kept = [one for group in groups for one in group.totals if one is not None]
    number, spreads = sum(len(group.totals) for group in groups), [_spread(group) for group in groups]
    measures = {
        "reward": statistics.fmean(all_kept) if all_kept else 0.0,
        "reward_std": statistics.stdev(all_kept) if len(all_kept) > 1 else 0.0,
        "group_std": statistics.fmean(spreads),
        "groups_alike": statistics.fmean(float(spread < _ALIKE) for spread in spreads),
        "failed": 1 - len(all_kept) / number,
    }
    for name in groups[0].rewards:
        said = [value for group in groups for value in group.rewards[name] if value is not None]
        measures |= {f"{name}_sum": sum(said) / number, f"{name}_share": len(said) / number}
    return measures


def _spread(group: Group) -> float:
    """Returns the standard deviation of a group's rewards."""
    totals = [one for one in group.totals if one is not None]
    return statistics.stdev(totals) if len(totals) > 1 else 0.0
