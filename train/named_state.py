"""The weights of a model and the memory of its AdamW by the names of the parameters, whoever shards them.

So a checkpoint is plain safetensors and holds for training with and without DeepSpeed, at any stage of ZeRO and for any
number of processes. Frozen parameters are not in it: whoever makes the model makes them again, and they are compared.

Differs: formats of shards are written by all processes at once; this one is gathered, parameter by parameter, and
written by the first. What is gained is that nothing is unpickled and nothing must be converted.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE_BYTES = 4 << 30


@runtime_checkable
class ParameterState(Protocol):
    """What an optimizer knows of the parameters; where it is sharded, every process must call it alike."""

    def entries(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Returns the whole ``weight`` at full precision and, once a step was taken, both moments and ``step``."""
        ...

    def set_entries(self, parameter: nn.Parameter, entries: Mapping[str, Tensor]) -> None:
        """Sets the weight, and the moments if they are given, from what ``entries`` returned."""
        ...


class WholeState:
    """Parameters and moments that lie whole in this process."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def entries(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Returns the ``weight`` and, once a step was taken, both moments and ``step``."""
        return {"weight": parameter.detach(), **self.optimizer.state.get(parameter, {})}

    @torch.no_grad()
    def set_entries(self, parameter: nn.Parameter, entries: Mapping[str, Tensor]) -> None:
        """Sets the weight, and the moments if they are given."""
        parameter.copy_(entries["weight"])
        moments = {name: value.to(parameter.device) for name, value in entries.items() if name != "weight"}
        if moments:
            self.optimizer.state[parameter] = moments


def write(folder: Path, model: nn.Module, state: ParameterState, *, first: bool) -> None:
    """Writes the state of a training into a folder; the first process writes."""
    held: dict[str, Tensor] = {}
    number = size = 0
    for name, tensor in _all_entries(model, state):
        if not first:
            continue
        held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size > _FILE_BYTES:
            safetensors.torch.save_file(held, folder / _file_name(number))
            held, size, number = {}, 0, number + 1
    if held:
        safetensors.torch.save_file(held, folder / _file_name(number))


def read(folder: Path, model: nn.Module, state: ParameterState) -> None:
    """Takes over what ``write`` wrote.

    Raises:
        ValueError: if it is the state of a model with other parameters.
    """
    try:
        files = [safe_open(path, "pt") for path in sorted(folder.glob(_file_name("*")))]
        found = {name: file for file in files for name in file.keys()}  # noqa: SIM118, it is no dict
        entries: dict[str, list[str]] = {}
        for name in found:
            kind, _, parameter = name.partition("/")
            entries.setdefault(parameter, []).append(kind)
        own = {**dict(_trained(model)), **dict(_buffers(model))}
        if set(entries) != set(own):
            raise ValueError(f"it has other parameters: {', '.join(sorted(set(entries) ^ set(own)))}")
        for name, tensor in own.items():
            values = {kind: found[f"{kind}/{name}"].get_tensor(f"{kind}/{name}") for kind in entries[name]}
            if isinstance(tensor, nn.Parameter):
                state.set_entries(tensor, _fitting(values, name, tensor))
            else:
                tensor.copy_(values["buffer"])
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(f"{folder} must be a checkpoint of this model: {error}") from error


def frozen_hash(model: nn.Module) -> str | None:
    """Returns a hash of the parameters that do not train, for they are in no checkpoint; None if all train.

    It is that of the weights in bfloat16, in which some runs have them: a checkpoint fits runs of both kinds.
    """
    frozen = [(name, one) for name, one in model.named_parameters() if not one.requires_grad]
    sha = hashlib.sha256()
    for name, parameter in frozen:
        sha.update(name.encode())
        sha.update(parameter.detach().cpu().bfloat16().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16] if frozen else None


def _fitting(values: dict[str, Tensor], name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # a sharded one is empty
    if values["weight"].shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(values['weight'].shape)}")
    return values


def _all_entries(model: nn.Module, state: ParameterState) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in _trained(model):
        for kind, tensor in state.entries(parameter).items():
            yield f"{kind}/{name}", tensor
    for name, buffer in _buffers(model):
        yield f"buffer/{name}", buffer


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def _file_name(number: int | str) -> str:
    return f"state-{number:05}.safetensors" if isinstance(number, int) else f"state-{number}.safetensors"
