"""Bits to ids and back, exact in int64: sums of floats are wrong from 25 bits on, shifts of int32 from 31 on."""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BitOrder = Literal["most_significant_first", "least_significant_first"]
"""What the first channel of a stream is in its id; published checkpoints differ in it."""

MOST_BITS = 62
"""Bits of one id: a code book of 2^62 is the largest whose size int64 can hold beside -1."""


def ids_of_bits(bits: Bool[Tensor, "*batch bits"], order: BitOrder) -> Int[Tensor, "*batch"]:
    """Returns the number that the bits of the last dimension write."""
    return (bits.long() << _places(bits.shape[-1], order, bits.device)).sum(dim=-1)


def bits_of_ids(ids: Int[Tensor, "*batch"], num_bits: int, order: BitOrder) -> Bool[Tensor, "*batch bits"]:
    """Returns the bits that write each number, in a new last dimension."""
    return ((ids.unsqueeze(-1) >> _places(num_bits, order, ids.device)) & 1).bool()


def _places(num_bits: int, order: BitOrder, device: torch.device) -> Int[Tensor, " bits"]:
    places = torch.arange(num_bits, device=device)
    return places if order == "least_significant_first" else num_bits - 1 - places
