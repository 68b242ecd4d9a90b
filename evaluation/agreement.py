"""How far two judges of the same drawings agree."""

from collections.abc import Mapping, Sequence

import torch


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns how alike two lists rank their items: 1 is the same order, -1 the reverse; ties count in neither.

    Of marks that are 0 or 1 it is their correlation.

    Source: Kendall, "The treatment of ties in ranking problems", 1945 (tau-b).

    Returns:
        None where a list has the same value everywhere, for it ranks nothing.

    Raises:
        ValueError: if the lists are of different lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"lists must be equally long, got {len(first)} and {len(second)}")
    one, other = (_orders(torch.tensor(values, dtype=torch.double)) for values in (first, second))
    pairs = one.abs().sum() * other.abs().sum()
    return float((one * other).sum() / pairs.sqrt()) if pairs else None


def agreement(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float | int | None]:
    """Returns the share of items with the same mark, and how alike the marks rank them, of the items that both have."""
    items = sorted(first.keys() & second.keys())
    one, other = [first[item] for item in items], [second[item] for item in items]
    same = sum(mark == mate for mark, mate in zip(one, other, strict=True)) / len(items) if items else None
    return {"same": same, "kendall": kendall(one, other), "n": len(items)}


def _orders(values: torch.Tensor) -> torch.Tensor:
    """Returns for each pair of items which is the higher: 1, 0 or -1."""
    return (values[:, None] - values).sign()
