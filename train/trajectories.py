"""The way of a trained decoder from noise to picture, cut into the steps that a student shall take at once."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from rebus.model.flow import Velocity


@dataclass(frozen=True, eq=False)
class Steps:
    """Long steps: where and when they start, how long they are, and the mean velocity that leads to their ends."""

    start: Float[Tensor, "rows channels height width"]
    time: Float[Tensor, " rows"]
    span: Float[Tensor, " rows"]
    velocity: Float[Tensor, "rows channels height width"]

    def end(self, velocity: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows channels height width"]:
        """Returns where steps of these velocities end."""
        return self.start - rearrange(self.span, "rows -> rows 1 1 1") * velocity

    @property
    def reach_the_picture(self) -> Tensor:
        """Which of them end at time 0."""
        return self.time - self.span < 1e-6


@torch.no_grad()
def trajectory(
    velocity: Velocity, noise: Float[Tensor, "batch channels height width"], steps: int
) -> Float[Tensor, "points batch channels height width"]:
    """Returns all points on the way from noise (the first) to data (the last), by Euler steps of equal length."""
    points = [noise]
    for time, following in pairwise(torch.linspace(1, 0, steps + 1, device=noise.device)):
        points.append(points[-1] + (following - time) * velocity(points[-1], time.expand(len(noise))))
    return torch.stack(points)


def long_steps(
    points: Float[Tensor, "points batch channels height width"],
    numbers: tuple[int, ...],
    parts: Int[Tensor, "batch numbers"],
) -> Steps:
    """Returns one part of each trajectory for each number of parts that it is cut into, the first number's first.

    Args:
        points: trajectories whose number of steps is a multiple of all ``numbers``.
        numbers: of steps that make a whole way.
        parts: which of so many steps, counted from the noise on.
    """
    num_steps, rows = len(points) - 1, torch.arange(points.shape[1], device=points.device)
    assert all(num_steps % number == 0 for number in numbers)
    lengths = [num_steps // number for number in numbers]
    begins = [part * length for part, length in zip(parts.unbind(dim=1), lengths, strict=True)]
    start = torch.cat([points[begin, rows] for begin in begins])
    end = torch.cat([points[begin + length, rows] for begin, length in zip(begins, lengths, strict=True)])
    span = torch.tensor(lengths, device=points.device).repeat_interleave(len(rows)) / num_steps
    time = 1 - torch.cat(begins) / num_steps
    return Steps(start, time, span, (start - end) / rearrange(span, "rows -> rows 1 1 1"))
