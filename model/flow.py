"""Flow matching along straight lines: noise at time 1, data at time 0, as everywhere in this project and in diffusers.

Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
https://arxiv.org/abs/2403.03206, sec. 2 and 3.1 (rectified flow, logit-normal times).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Float[Tensor, "batch ..."], Float[Tensor, " batch"]], Float[Tensor, "batch ..."]]
"""A model: noisy data and their times in [0, 1] to the velocity there."""


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


@torch.no_grad()
def integrate(velocity: Velocity, noise: Float[Tensor, "batch ..."], steps: int) -> Float[Tensor, "batch ..."]:
    """Returns the data that a model's velocities lead to from noise, by Euler steps of equal length.

    Raises:
        ValueError: if ``steps`` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    times = torch.linspace(1, 0, steps + 1, device=noise.device)
    state = noise
    for time, following in pairwise(times):
        state = state + (following - time) * velocity(state, time.expand(len(state)))
    return state
