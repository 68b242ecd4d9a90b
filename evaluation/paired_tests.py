"""How likely two models would differ so much on the same items if they were equally good."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

NUM_FLIPS = 10_000
"""Random signs that are drawn where there are too many to try them all."""
_MOST_TRIED = 13
"""Differences whose 8,192 signs are all tried."""
_FLIPS_AT_A_TIME = 1000


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns the exact two-sided p-value of items that only one of two models got right.

    If the models were equally good, each such item would be either one's by the toss of a coin; items that both or
    neither got right say nothing.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    1947.
    Differs: the binomial distribution itself, not its normal approximation, which is wrong for few items.
    """
    number = only_first + only_second
    tail = sum(math.comb(number, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**number)


def sign_flip(differences: Sequence[float], generator: torch.Generator) -> float:
    """Returns the two-sided p-value of the mean of paired differences, by flipping their signs.

    If the models were equally good, each difference would as soon have the other sign. All signs are tried where there
    are few differences, else ``NUM_FLIPS`` random ones, among which the true ones count as one.

    Source: Fisher, "The Design of Experiments", 1935, sec. 21; for random signs Phipson and Smyth, "Permutation
    P-values Should Never Be Zero", https://arxiv.org/abs/1603.05766, sec. 4.
    """
    values = torch.tensor([one for one in differences if one], dtype=torch.double)  # signs of zeros change nothing
    reached = (1 - 1e-9) * values.sum().abs()  # sums of the same numbers differ in their last bits
    if len(values) <= _MOST_TRIED:
        signs = (torch.arange(2 ** len(values))[:, None] >> torch.arange(len(values))) % 2 * 2 - 1
        return float((_sums(signs, values) >= reached).double().mean())
    above = 0
    for _ in range(NUM_FLIPS // _FLIPS_AT_A_TIME):
        flips = torch.randint(2, (_FLIPS_AT_A_TIME, len(values)), generator=generator) * 2 - 1
        above += int((_sums(flips, values) >= reached).sum())
    return (1 + above) / (1 + NUM_FLIPS)


def _sums(signs: Tensor, values: Float[Tensor, " items"]) -> Float[Tensor, " flips"]:
    return (signs.double() @ values).abs()
