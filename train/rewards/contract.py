"""What a reward must be: a plain function in the call shape of TRL, made by a config in the process that calls it.

A reward never is the judge that reports: what is trained against a judge learns the judge's mistakes, and the judge
then reports them as merits.

Source: the reward functions of TRL's ``GRPOTrainer``, https://huggingface.co/docs/trl/grpo_trainer.
Differs: a completion is the rendered picture.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class Reward(Protocol):
    """A function of prompts and pictures; any plain function of this shape is one."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Image.Image], **columns: Sequence[Any]
    ) -> list[float | None]:
        """Returns a number for each picture; None where the reward has nothing to say of such a prompt.

        An error, or a number that is not finite, fails the picture: it is counted and trains nothing.

        Args:
            prompts: what was asked for.
            completions: what was drawn.
            columns: more about each prompt by name: ``scene``, the scene that it tells of.
        """
        ...


@runtime_checkable
class RewardConfig(Protocol):
    """Names a reward, weighs it among others and builds it; it goes to other processes, the function does not."""

    @property
    def weight(self) -> float:
        """By which the number is multiplied before all are added."""
        ...

    def check(self) -> None:
        """Looks whether what the reward needs is there, before any work.

        Raises:
            ValueError: if it is not, or must not be a reward.
        """
        ...

    def build(self) -> Reward:
        """Returns the function."""
        ...


def check_weight(weight: float) -> None:
    """Refuses a weight with which a reward would not matter.

    Raises:
        ValueError: if it is not positive and finite.
    """
    if not 0 < weight < float("inf"):
        raise ValueError(f"weight must be positive and finite, got {weight}")
