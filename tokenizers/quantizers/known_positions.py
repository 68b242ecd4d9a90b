"""The positions that count in a loss, and how many they are among all processes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rebus.tokenizers.quantizers.processes import add_over_processes, num_processes


@dataclass(frozen=True, eq=False)
class KnownPositions:
    """Weights of positions, and what their sums are to be divided by."""

    weights: Float[Tensor, "batch positions"]
    """1 where a position counts, else 0."""
    count: Float[Tensor, ""]
    """How many count in a process on average, at least one in all.

    A sum over this is such that its mean over processes, as a training takes it of gradients, is the mean over all
    positions that count, however unequally the processes share them.
    """

    def mean_square(
        self, features: Float[Tensor, "batch positions dim"], codes: Float[Tensor, "batch positions dim"]
    ) -> Float[Tensor, ""]:
        """Returns the part of this process in the mean squared difference."""
        return ((features - codes).square().mean(dim=-1) * self.weights).sum() / self.count


@torch.no_grad()
def known_positions(
    features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None, *, shared: bool
) -> KnownPositions:
    """Returns the positions where ``mask`` is True, or all.

    Args:
        features: of all positions.
        mask: which positions count.
        shared: whether to count those of all processes, which then must all call it alike; a training does.
    """
    weights = torch.ones_like(features[..., 0], dtype=torch.float32) if mask is None else mask.float()
    count = weights.sum()
    if shared:
        add_over_processes(count)
    return KnownPositions(weights, count.clamp_min(1) / (num_processes() if shared else 1))
