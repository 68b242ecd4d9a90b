"""The endless order in which training reads the samples of several folders: mixed by weight, shuffled anew each epoch.

Every place of the order is a pure function of the seed and of how much was read before, which is a few numbers: nothing
is drawn from a library whose next version may draw otherwise, and no list of all samples is kept.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

_NUM_ROUNDS = 6
_BLOCK = 16_384


Place = tuple[int, int]
"""Where a sample is: the number of its folder, and its own within that."""


class ShardOrder:
    """Draws samples from folders, each as often as its weight says; every one once before any a second time."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        """Takes the number of samples of each folder, at least 1, and how often it is drawn from, relatively."""
        assert len(sizes) == len(weights) and min(sizes) > 0 and min(weights) > 0
        self.sizes, self.seed = list(sizes), seed
        self._shares = np.cumsum(np.asarray(weights, dtype=np.float64)) / float(np.sum(weights))
        self._start([0] * len(sizes), 0, 0)

    def take(self) -> Place:
        """Returns the next sample."""
        if self._offset == _BLOCK:
            self._start(self._read_after, self._block + 1, 0)
        self._offset += 1
        return self._places[self._offset - 1]

    @property
    def num_taken(self) -> int:
        """Samples that were taken so far."""
        return self._block * _BLOCK + self._offset

    def num_read(self) -> list[int]:
        """Returns how many of them are of each folder."""
        taken = [folder for folder, _ in self._places[: self._offset]]
        return [before + taken.count(folder) for folder, before in enumerate(self._read_before)]

    def state(self) -> dict[str, Any]:
        """Returns where the order stands, as JSON."""
        return {"block": self._block, "offset": self._offset, "read": self._read_before}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where an order of the same folders, weights and seed was."""
        self._start(state["read"], state["block"], state["offset"])

    def _start(self, read: list[int], block: int, offset: int) -> None:
        """Draws a block of the order, before which so many samples of each folder were read."""
        numbers = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint64)
        folders = np.searchsorted(self._shares[:-1], _uniform(numbers, self.seed), side="right")
        samples = np.empty(_BLOCK, dtype=np.int64)
        after = list(read)
        for folder, size in enumerate(self.sizes):
            here = np.flatnonzero(folders == folder)
            samples[here] = self._shuffled(folder, read[folder] + np.arange(len(here)), size)
            after[folder] += len(here)
        self._places = list(zip(folders.tolist(), samples.tolist(), strict=True))
        self._block, self._offset, self._read_before, self._read_after = block, offset, list(read), after

    def _shuffled(self, folder: int, numbers: Int64[np.ndarray, " n"], size: int) -> Int64[np.ndarray, " n"]:
        if not len(numbers):
            return numbers
        epochs = numbers // size
        keys = shuffle_keys(self.seed, folder, np.arange(epochs[0], epochs[-1] + 1))
        return permuted(numbers % size, size, keys if len(keys) == 1 else keys[epochs - epochs[0]])


def shuffle_keys(seed: int, folder: int, epochs: Int64[np.ndarray, " epochs"]) -> UInt64[np.ndarray, " epochs"]:
    """Returns the key of the shuffle of a folder for each of some epochs."""
    own = _hashed(np.array([seed % 2**64], dtype=np.uint64))
    return _hashed(_hashed(own ^ np.uint64(folder)) ^ epochs.astype(np.uint64))


def permuted(
    places: Int64[np.ndarray, " n"], size: int, keys: UInt64[np.ndarray, " n_or_1"]
) -> Int64[np.ndarray, " n"]:
    """Returns where a permutation of ``range(size)`` takes each place; every key has a permutation of its own.

    Args:
        places: in ``range(size)``.
        size: how many there are.
        keys: one for all places, or one for each.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: a generalized Feistel network over
    the next square, walked on until it comes back into the range. Differs: no secret, so its rounds are a cheap hash.
    """
    side = np.uint64(math.isqrt(size - 1) + 1)
    values, walking = places.astype(np.uint64), np.arange(len(places))
    while len(walking):
        left, right = np.divmod(values[walking], side)
        own = keys if len(keys) == 1 else keys[walking]
        for number in range(_NUM_ROUNDS):
            key = _hashed(own ^ np.uint64(number))
            left, right = right, (left + _hashed(right ^ key) % side) % side
        values[walking] = left * side + right
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


def _uniform(places: UInt64[np.ndarray, " n"], seed: int) -> np.ndarray:
    """Returns a number in [0, 1) for each place."""
    own = _hashed(np.array([seed % 2**64], dtype=np.uint64))
    return (_hashed(places ^ own) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _hashed(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Returns 64 well mixed bits for each.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 17.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
