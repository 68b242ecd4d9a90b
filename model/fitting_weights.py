"""Weights from a file into a model that they fit name by name; if they do not, the error says which names are wrong."""

from pathlib import Path

import safetensors.torch
from torch import nn

_MOST_NAMED = 8


def load_fitting(model: nn.Module, path: Path, to: str = "config.json") -> None:
    """Copies the weights in a safetensors file into a model.

    Args:
        model: of which no weight may be left out.
        path: the file.
        to: what says which weights there must be, for the error.

    Raises:
        ValueError: if there is no such file, or a weight is missing, unexpected or of another shape.
    """
    if not path.is_file():
        raise ValueError(f"{path} must hold the weights, got no such file")
    weights, own = safetensors.torch.load_file(path), model.state_dict()
    shared = own.keys() & weights.keys()
    wrong = {
        "missing": own.keys() - weights.keys(),
        "unexpected": weights.keys() - own.keys(),
        "of another shape": {name for name in shared if own[name].shape != weights[name].shape},
    }
    if any(wrong.values()):
        told = "; ".join(f"{what}: {_listed(sorted(names))}" for what, names in wrong.items() if names)
        raise ValueError(f"{path}: the weights must fit {to}, got {told}")
    model.load_state_dict(weights)


def _listed(names: list[str]) -> str:
    shown, more = names[:_MOST_NAMED], len(names) - _MOST_NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
