"""Which parameters of a model learn, how fast, and which of them decay: the groups of the optimizer.

A part of a model is named by the start of its parameters' names, up to a dot: ``model.layers.1`` is the whole layer 1
and nothing of layer 10. Weights that are tied are one parameter with several names, each of which means it.
"""

from typing import Any

from torch import nn

from rebus.train.config import OptimConfig


def freeze(model: nn.Module, optim: OptimConfig) -> None:
    """Stops the frozen parts of a model from learning.

    Raises:
        ValueError: if a part that is frozen or has a rate of its own is none of the model's, or nothing is left.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for key, parts in (("optim.frozen", optim.frozen), ("optim.rates", optim.rates)):
        for part in parts:
            if not any(_is_in(name, part) for name in names):
                raise ValueError(f"{key} must name parts of the model ({_parts_near(part, names)}), got {part}")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(_is_in(name, part) for part in optim.frozen):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"optim.frozen must leave something that learns, got {list(optim.frozen)}")


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Returns the trainable weights in groups of one decay and one rate; only matrices that are no embeddings decay.

    The key ``rate`` of a group is what its learning rate is to be multiplied with: that of the longest name in
    ``optim.rates`` that it is part of. The first groups are those of the rate 1.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # PEFT trains rows of an embedding as parameters of their own.
    embeddings |= {id(rows) for name, rows in model.named_parameters() if "trainable_tokens_" in name}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    rates = _rates(model, optim)
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in embeddings
            groups.setdefault((rates[id(parameter)], decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": optim.weight_decay if decays else 0.0, "rate": rate}
        for (rate, decays), parameters in groups.items()
        if parameters
    ]


def _rates(model: nn.Module, optim: OptimConfig) -> dict[int, float]:
    longest: dict[int, tuple[int, float]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found = [(len(part), rate) for part, rate in optim.rates.items() if _is_in(name, part)]
        longest[id(parameter)] = max([longest.get(id(parameter), (0, 1.0)), *found])
    return {key: rate for key, (_, rate) in longest.items()}


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _parts_near(part: str, names: list[str]) -> str:
    """Returns what there is one step below the longest start of ``part`` that the model has."""
    known = part.split(".")
    while known and not any(_is_in(name, ".".join(known)) for name in names):
        known.pop()
    depth = len(known) + 1
    inside = [name for name in names if not known or _is_in(name, ".".join(known))]
    return ", ".join(dict.fromkeys(".".join(name.split(".")[:depth]) for name in inside))
