"""Flow matching along straight lines: noise at time 1, data at time 0, as everywhere in this project and in diffusers.

Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
https://arxiv.org/abs/2403.03206, sec. 2 and 3.1 (rectified flow, logit-normal times) and 5.3.2 (times shifted for
larger pictures).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Float[Tensor, "batch ..."], Float[Tensor, " batch"]], Float[Tensor, "batch ..."]]
"""A model: noisy data and their times in [0, 1] to the velocity there."""
MeanVelocity = Callable[
    [Float[Tensor, "batch ..."], Float[Tensor, " batch"], Float[Tensor, " batch"]], Float[Tensor, "batch ..."]
]
"""A flow map: noisy data, their times, and how far to go from there towards 0, to the mean velocity on the way."""
Solver = Literal["euler", "heun"]
"""``"euler"``: one velocity a step. ``"heun"``: the mean of those at both ends of a step, but for the last."""


def interpolate(
    clean: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], time: Float[Tensor, " batch"]
) -> Float[Tensor, "batch ..."]:
    """Returns the point of the line from clean data (time 0) to noise (time 1)."""
    time = time.reshape(-1, *[1] * (clean.ndim - 1))
    return (1 - time) * clean + time * noise


def velocity_target(clean: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
    """Returns the velocity along the line, the same at all times: what a model learns to give."""
    return noise - clean


def logit_normal_times(number: int, *, mean: float, std: float, generator: torch.Generator) -> Float[Tensor, " number"]:
    """Returns float32 times in (0, 1) whose logits are Gaussian; a higher mean trains more on noise."""
    return torch.sigmoid(mean + std * torch.randn(number, generator=generator))


def shifted(time: Float[Tensor, " times"], shift: float) -> Float[Tensor, " times"]:
    """Returns times moved towards noise, the ends staying where they are; a shift of 1 leaves all as they are.

    A picture of four times as many pixels drowns in noise later: it looks at time 2t / (1 + t), which is a shift of 2,
    as the smaller one looks at t.
    """
    return shift * time / (1 + (shift - 1) * time)


@torch.no_grad()
def integrate(
    velocity: Velocity,
    noise: Float[Tensor, "batch ..."],
    steps: int,
    *,
    shift: float = 1.0,
    solver: Solver = "euler",
) -> Float[Tensor, "batch ..."]:
    """Returns the data that a model's velocities lead to from noise.

    Args:
        velocity: the model.
        noise: at time 1.
        steps: of equal length before they are shifted.
        shift: of their ends, see `shifted`.
        solver: how a step is taken.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """
    times, state = step_ends(steps, shift).to(noise.device), noise
    for time, following in pairwise(times):
        here = velocity(state, time.expand(len(state)))
        ahead = state + (following - time) * here
        if solver == "heun" and following > 0:
            there = velocity(ahead, following.expand(len(state)))
            ahead = state + (following - time) * (here + there) / 2
        state = ahead
    return state


@torch.no_grad()
def leap(
    mean_velocity: MeanVelocity, noise: Float[Tensor, "batch ..."], steps: int, *, shift: float = 1.0
) -> Float[Tensor, "batch ..."]:
    """Returns the data that a flow map leads to from noise; see `integrate`.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """
    state = noise
    for time, following in pairwise(step_ends(steps, shift).to(noise.device)):
        span = (time - following).expand(len(state))
        state = state + (following - time) * mean_velocity(state, time.expand(len(state)), span)
    return state


def step_ends(steps: int, shift: float) -> Float[Tensor, " ends"]:
    """Returns the times between steps, from 1 to 0.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return shifted(torch.linspace(1, 0, steps + 1), shift)
