"""A running average of a model's weights, which may stand in for them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Float32 copies of the parameters that follow them slowly; the first steps weigh more, so that it warms up."""

    def __init__(self, model: nn.Module, memory: float) -> None:
        self.memory = memory
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages towards the weights after a step, counted from 0."""
        memory = min(self.memory, (1 + step) / (10 + step))
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.float(), 1 - memory)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lets the model have the averages for weights while the context lasts."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Returns the averages by the names of the parameters."""
        return dict(zip(self.names, self.averages, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over averages that ``state`` gave.

        Raises:
            ValueError: if they are those of other parameters.
        """
        if set(state) != set(self.names):
            raise ValueError(f"averages must be of the model's parameters, got others: {set(state) ^ set(self.names)}")
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(state[name])
