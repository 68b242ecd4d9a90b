"""One optimizer step: plainly in one process, or by DeepSpeed in any number."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rebus.train.config import OptimConfig, RunConfig
from rebus.train.named_state import ParameterState, WholeState
from rebus.train.parameter_groups import parameter_groups
from rebus.train.runtime import deepspeed_config
from rebus.train.zero_state import ZeroState

Loss = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]


def adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Returns the optimizer of a model's trainable weights."""
    groups = parameter_groups(model, optim)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)


class PlainUpdater:
    """Gradient, clipping and AdamW in one process."""

    def __init__(self, model: nn.Module, loss: Loss, optim: OptimConfig) -> None:
        self.model, self.loss, self.clip_norm = model, loss, optim.clip_norm
        self.optimizer = adamw(model, optim)

    def update(self, parts: Sequence[Any], learning_rate: float) -> dict[str, Tensor]:
        """Takes one step down the mean loss of a step's micro-batches; returns the means of loss and metrics.

        Raises:
            FloatingPointError: if loss or gradient are not finite; the weights are then those from before.
        """
        told = []
        for part in parts:
            loss, metrics = self.loss(part)
            _check_finite(loss, "loss")
            (loss / len(parts)).backward()
            told.append({"loss": loss.detach(), **metrics})
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        _check_finite(norm, "the gradient's norm")
        _set_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**_means(told), "gradient_norm": norm}

    @property
    def state(self) -> ParameterState:
        """What a checkpoint holds."""
        return WholeState(self.optimizer)

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Lets the model be used by itself while the context lasts, as it can be at any time."""
        yield

    def free_parameters(self) -> None:
        """Does nothing: every parameter has its own memory."""


class DeepSpeedUpdater:
    """The same by DeepSpeed: gradients are averaged over the processes, the optimizer may be sharded."""

    def __init__(self, model: nn.Module, loss: Loss, run: RunConfig, optim: OptimConfig, world: int) -> None:
        import deepspeed

        self.model, self.optimizer, self.clip_norm = model, adamw(model, optim), optim.clip_norm
        self.engine, *_ = deepspeed.initialize(
            model=_ModelWithLoss(model, loss), optimizer=self.optimizer, config=deepspeed_config(run, optim, world)
        )
        self.sharded = run.sharding > 0

    def update(self, parts: Sequence[Any], learning_rate: float) -> dict[str, Tensor]:
        """Takes one step down the mean of the processes' losses; returns the means of this process's own.

        Raises:
            FloatingPointError: if loss or gradient are not finite; the weights are then those from before.
        """
        told, own_norm = [], torch.zeros(())
        _set_rate(self.optimizer, learning_rate)
        for part in parts:
            loss, metrics = self.engine(part)
            _check_finite(loss, "loss")
            self.engine.backward(loss)
            told.append({"loss": loss.detach(), **metrics})
            if part is parts[-1] and not self.sharded:
                own_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
                _check_finite(own_norm, "the gradient's norm")
            self.engine.step()  # a step of the optimizer at the last part only
        norm = torch.as_tensor(self.engine.get_global_grad_norm()) if self.sharded else own_norm
        _check_finite(norm, "the gradient's norm")  # where it is sharded, DeepSpeed has then left out the step
        return {**_means(told), "gradient_norm": norm}

    @property
    def state(self) -> ParameterState:
        """What a checkpoint holds, whatever is sharded."""
        return ZeroState(self.engine) if self.sharded else WholeState(self.optimizer)

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Lets the model be used by itself while the context lasts: at stage 3 every process gathers all of it."""
        if self.engine.zero_optimization_stage() < 3:
            yield
            return
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        with unwrap_model_for_generation(self.engine):
            yield

    def free_parameters(self) -> None:
        """Gives each parameter its own memory instead of a slice of one buffer, which safetensors would not save.

        No update may follow.
        """
        for parameter in self.model.parameters():
            parameter.data = parameter.data.clone()


class _ModelWithLoss(nn.Module):
    """A model whose forward is its loss, as DeepSpeed wants to see it."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)


def _set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]


def _means(told: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name].detach() for one in told]).mean(0) for name in told[0]}


def _check_finite(value: Tensor, name: str) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"{name} must be finite, got {value.item()}")
