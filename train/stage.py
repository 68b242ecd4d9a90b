"""What a stage of training must be, so that the one loop can train it."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Stage(Protocol):
    """What a stage brings: a model, its data and its loss."""

    @property
    def model(self) -> nn.Module:
        """Everything that trains; frozen helpers stay outside."""
        ...

    @property
    def parts(self) -> dict[str, str]:
        """Hashes of the frozen parts that the model learns with: a run is not continued with others."""
        ...

    def batch(self, step: int, rank: int, world: int) -> Any:
        """Returns rows ``rank::world`` of a step's batch; steps are asked for in turn, from that of a checkpoint on.

        With micro-batches, ``world`` is their number over all processes.
        """
        ...

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar to be lowered, and metrics of the same names at every step.

        Gradients are averaged over the processes and micro-batches, each weighing the same. A loss per token therefore
        divides by the mean number of tokens over them: a batch with a tensor ``num_targets`` gets it put in there.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Returns the measures of the model on held-out data; every process calls it."""
        ...

    def samples(self, folder: Path) -> None:
        """Writes pictures to look at into a folder that exists; those named ``*.png`` are also put on TensorBoard."""
        ...

    def export(self, folder: Path) -> None:
        """Writes the finished model into an empty folder."""
        ...


@runtime_checkable
class HasDataState(Protocol):
    """What a stage has besides whose batches are no pure function of the step."""

    def data_state(self, step: int) -> dict[str, Any]:
        """Returns where its data stands before a step, as JSON: the same in all processes."""
        ...

    def load_data_state(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken, maybe by another number of processes.

        Raises:
            ValueError: if it is that of other data.
        """
        ...
