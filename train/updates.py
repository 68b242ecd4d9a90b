"""One optimizer step and its state on the disk: plainly in one process, or by DeepSpeed in any number."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rebus.train.config import OptimConfig, RunConfig
from rebus.train.runtime import deepspeed_config

Loss = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]


def adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Returns the optimizer of a model's trainable weights; only matrices that are no embeddings decay."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [parameter for parameter in trainable if parameter.ndim > 1 and id(parameter) not in embeddings]
    chosen = {id(parameter) for parameter in decaying}
    groups = [
        {"params": decaying, "weight_decay": optim.weight_decay},
        {"params": [parameter for parameter in trainable if id(parameter) not in chosen], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True)


class PlainUpdater:
    """Gradient, clipping and AdamW in one process."""

    def __init__(self, model: nn.Module, loss: Loss, optim: OptimConfig) -> None:
        self.model, self.loss, self.clip_norm = model, loss, optim.clip_norm
        self.optimizer = adamw(model, optim)

    def update(self, batch: Any, learning_rate: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes one step down the loss of a batch; returns the loss and its metrics.

        Raises:
            FloatingPointError: if the loss is not finite; the weights are then those from before.
        """
        loss, metrics = self.loss(batch)
        _check_finite(loss)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), {**metrics, "gradient_norm": norm}

    def save(self, folder: Path) -> None:
        """Writes the weights and the optimizer's state."""
        safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        """Takes over what ``save`` wrote.

        Raises:
            ValueError: if the checkpoint is of another model or of another kind of training.
        """
        if not (folder / "optimizer.pt").exists():
            raise ValueError(f"{folder} must be a checkpoint of a training without DeepSpeed")
        try:
            safetensors.torch.load_model(self.model, str(folder / "model.safetensors"))
            with _settings_kept(self.optimizer):
                state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
                self.optimizer.load_state_dict(state)
        except (RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
            raise ValueError(f"{folder} must be a whole checkpoint of this model: {error}") from error

    def free_parameters(self) -> None:
        """Does nothing: every parameter has its own memory."""


class DeepSpeedUpdater:
    """The same by DeepSpeed: gradients are averaged over the processes, the optimizer may be sharded.

    Differs: DeepSpeed keeps its state in its own pickled files; only resume from checkpoints that you made.
    """

    def __init__(self, model: nn.Module, loss: Loss, run: RunConfig, optim: OptimConfig, world: int) -> None:
        import deepspeed

        self.model, self.optimizer = model, adamw(model, optim)
        self.engine, *_ = deepspeed.initialize(
            model=_ModelWithLoss(model, loss), optimizer=self.optimizer, config=deepspeed_config(run, optim, world)
        )

    def update(self, batch: Any, learning_rate: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes one step down the mean of the processes' losses; returns this process's loss and its metrics.

        Raises:
            FloatingPointError: if the loss is not finite; the weights are then those from before.
        """
        loss, metrics = self.engine(batch)
        _check_finite(loss)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.backward(loss)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()  # None where nothing is sharded
        return loss.detach(), metrics if norm is None else {**metrics, "gradient_norm": torch.as_tensor(norm)}

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer; every process must call it."""
        self.engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)

    def load(self, folder: Path) -> None:
        """Takes over what ``save`` wrote; every process must call it.

        Raises:
            ValueError: if the checkpoint is of another kind of training.
        """
        if not (folder / "deepspeed").exists():
            raise ValueError(f"{folder} must be a checkpoint of a training with DeepSpeed")
        with _settings_kept(self.optimizer):
            self.engine.load_checkpoint(str(folder), tag="deepspeed")

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


@contextmanager
def _settings_kept(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Keeps weight decay and the like as configured now, where a loaded state would bring back the old ones."""
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)


def _check_finite(loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss must be finite, got {loss.item()}")
