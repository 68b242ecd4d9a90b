"""The base of a borrowed decoder from the folder of a pipeline that a user has: checked before a weight is read.

The folder is what ``save_pretrained`` of diffusers writes and what the Hub holds: ``unet`` or ``transformer``, ``vae``
and ``scheduler``, each with its config. Weights must be safetensors; text encoders are not looked at.
"""

import json
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import safe_open
from torch import nn

from rebus.model.borrowed_decoders.choice import FamilyConfig

AUTO_ENCODERS = ("AutoencoderKL", "AutoencoderDC")
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the attention in old auto-encoders, as that of Stable Diffusion 1.5; diffusers renames it while reading."""
_SHOWN_NAMES = 8

Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by name."""


@dataclass(frozen=True, eq=False)
class Base:
    """What a user brings."""

    family: FamilyConfig
    """The family, with the architecture of this base."""
    model: ModelMixin
    """A UNet or a transformer, frozen, in eval mode."""
    vae: ModelMixin
    """Its auto-encoder, frozen, in float32: that of Stable Diffusion XL overflows in half precision."""
    scheduler: SchedulerMixin
    """The scheduler that it is painted with."""


def load_base(folder: Path, family: FamilyConfig, dtype: torch.dtype = torch.float32) -> Base:
    """Reads a base and says before how much memory its weights take.

    Args:
        folder: of a pipeline of diffusers.
        family: what the base must be; its architecture is replaced by that of the folder.
        dtype: of the base's weights.

    Raises:
        ValueError: if the folder holds another kind of base, its weights do not fit its config, or are no safetensors.
    """
    part, vae = folder / family.part, folder / "vae"
    check_part(part, (family.base_class().__name__,))
    check_part(vae, AUTO_ENCODERS)
    scheduler = _scheduler(folder / "scheduler")
    print(memory_report({family.part: weight_bytes(part, dtype), "vae": weight_bytes(vae, torch.float32)}))
    return Base(
        replace(family, architecture=plain_values(read_config(part))),
        _model(part, family.base_class(), dtype),
        _model(vae, getattr(diffusers, read_config(vae)["_class_name"]), torch.float32),
        scheduler,
    )


def check_part(folder: Path, classes: tuple[str, ...]) -> None:
    """Refuses a model whose weights are not those of its config.

    Raises:
        ValueError: if it is of another class, or has other weights.
    """
    config = read_config(folder)
    if config.get("_class_name") not in classes:
        raise ValueError(f"{folder} must hold a {' or '.join(classes)}, got a {config.get('_class_name')}")
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(plain_values(config))
    check_weights(folder, model)


def check_weights(folder: Path, model: nn.Module) -> None:
    """Refuses weights that are not those of a model, which may lie on the meta device.

    Raises:
        ValueError: if there are missing, unexpected or misshapen ones, all of which it names.
    """
    wanted: Shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name if name in wanted else _present(name): shape for name, shape in weight_shapes(folder).items()}
    told = {
        "missing": sorted(wanted.keys() - got.keys()),
        "unexpected": sorted(got.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {got[name]} for {wanted[name]}"
            for name in sorted(wanted.keys() & got.keys())
            if got[name] != wanted[name]
        ],
    }
    if any(told.values()):
        parts = [f"{len(names)} {what} ({_listed(names)})" for what, names in told.items() if names]
        raise ValueError(f"{folder}: weights must fit config.json, got {', '.join(parts)}")


def plain_values(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what a ``config.json`` says of the model, without what it says of itself."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the ``config.json`` of a part.

    Raises:
        ValueError: if there is none.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} must be a part of a pipeline of diffusers (config.json), got no such file")
    return json.loads(path.read_text())


def weight_shapes(folder: Path) -> Shapes:
    """Returns the shapes of all weights of a part, without reading them.

    Raises:
        ValueError: if it has no safetensors; pickled weights are never read.
    """
    index = folder / f"{_WEIGHTS}.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {_WEIGHTS}
    shapes: Shapes = {}
    for name in sorted(names):
        if not (folder / name).is_file():
            found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise ValueError(f"{folder} must hold weights as safetensors ({name}), got {found}")
        with safe_open(folder / name, "pt") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, it is no dict
    return shapes


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Returns what the weights of a part take in memory."""
    return dtype.itemsize * sum(prod(shape) for shape in weight_shapes(folder).values())


def memory_report(parts: dict[str, int], *, offload: bool = False) -> str:
    """Returns in one line what the weights of parts take; activations come on top.

    Args:
        parts: bytes by name.
        offload: whether only the part at work lies on the device, and the others in the host's memory.
    """
    each = ", ".join(f"{name} {_readable(size)}" for name, size in parts.items())
    total = _readable(sum(parts.values()))
    if offload:
        return f"weights take {_readable(max(parts.values()))} of the device, {total} of the host ({each})"
    return f"weights take {total} ({each})"


def _model(folder: Path, kind: Any, dtype: torch.dtype) -> ModelMixin:
    model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    return model.requires_grad_(False).eval()


def _scheduler(folder: Path) -> SchedulerMixin:
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise ValueError(f"{folder} must hold a scheduler (scheduler_config.json), got no such file")
    name = json.loads(path.read_text()).get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"{path}: _class_name must be a scheduler of diffusers, got {name}")
    scheduler: Any = kind.from_pretrained(folder, local_files_only=True)
    return scheduler


def _present(name: str) -> str:
    parts = name.split(".")
    return ".".join([*parts[:-2], *(_OLD_NAMES.get(part, part) for part in parts[-2:])])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _readable(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.2f} MiB"
