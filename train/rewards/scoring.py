"""All rewards of a training at once: weighted, remembered, and computed in processes of their own.

A reward that fails on a picture marks that picture as failed and is counted; it becomes no zero and stops nothing.
"""

import hashlib
import math
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image

from rebus.train.rewards.contract import Reward, RewardConfig

MOST_REMEMBERED = 100_000
"""Rewards of pictures that are kept, lest they be computed again."""
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Scores:
    """What pictures are worth."""

    each: dict[str, list[float | None]]
    """By reward: NaN where it failed, None where it has nothing to say."""
    totals: list[float]
    """Weighted sums; NaN for a picture of which a reward failed or none has anything to say."""
    problems: Counter[str]
    """Why rewards failed, and how often."""


class Scorer:
    """Calls the rewards.

    Args:
        rewards: by name.
        num_workers: processes that compute them; 0 has it done here.

    Raises:
        ValueError: if there are no rewards, or one lacks what it needs.
    """

    def __init__(self, rewards: Mapping[str, RewardConfig], num_workers: int) -> None:
        if not rewards:
            raise ValueError("rewards must be at least one, got none")
        for config in rewards.values():
            config.check()
        self.rewards, self.num_workers = dict(rewards), num_workers
        self._known: dict[bytes, float | None] = {}
        self._pool: ProcessPoolExecutor | None = None
        self._built: dict[str, Reward] = {}
        if num_workers:  # not forked: a process with threads of torch cannot be
            self._pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker, (self.rewards,))
        else:
            self._built = {name: config.build() for name, config in self.rewards.items()}

    def start(self, prompts: Sequence[str], pictures: Sequence[Image.Image], columns: Columns) -> "Scoring":
        """Begins to compute the rewards of pictures, each with its prompt; meanwhile other work may be done."""
        parts, keys = [], {}
        for name in self.rewards:
            keys[name] = [_key(name, *each) for each in zip(prompts, pictures, strict=True)]
            fresh = {key: index for index, key in enumerate(keys[name]) if key not in self._known}
            wanted = list(fresh.values())
            size = math.ceil(len(wanted) / max(1, self.num_workers))
            for begin in range(0, len(wanted), max(1, size)):
                rows = wanted[begin : begin + size]
                task = (
                    name,
                    [prompts[row] for row in rows],
                    [np.asarray(pictures[row].convert("RGB")) for row in rows],
                    {column: [values[row] for row in rows] for column, values in columns.items()},
                )
                done: Future[Scored] = Future()
                if self._pool is not None:
                    done = self._pool.submit(_score_in_worker, *task)
                else:
                    done.set_result(_score(self._built[name], *task))
                parts.append(([keys[name][row] for row in rows], done))
        return Scoring(self, keys, parts)

    def remember(self, key: bytes, value: float | None) -> None:
        """Keeps a reward that did not fail; the oldest is forgotten for it where there are too many."""
        while len(self._known) >= MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key] = value

    def recalled(self, key: bytes) -> float | None:
        """Returns a reward that was remembered; NaN if it was not, for it failed."""
        return self._known.get(key, math.nan)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


Scored = tuple[list[float | None], list[str]]
"""Rewards, NaN where they failed, and why these failed."""


class Scoring:
    """Rewards that are being computed."""

    def __init__(
        self, scorer: Scorer, keys: dict[str, list[bytes]], parts: list[tuple[list[bytes], Future[Scored]]]
    ) -> None:
        self._scorer, self._keys, self._parts = scorer, keys, parts

    def scores(self) -> Scores:
        """Waits for the rewards and returns them."""
        problems: Counter[str] = Counter()
        for keys, done in self._parts:
            values, why = done.result()
            problems.update(why)
            for key, value in zip(keys, values, strict=True):
                if value is None or math.isfinite(value):
                    self._scorer.remember(key, value)
        each = {name: [self._scorer.recalled(key) for key in keys] for name, keys in self._keys.items()}
        weights = [config.weight for config in self._scorer.rewards.values()]
        totals = [_total(values, weights) for values in zip(*each.values(), strict=True)]
        return Scores(each, totals, problems)


def _total(values: Sequence[float | None], weights: Sequence[float]) -> float:
    said = [weight * value for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(said) if said else math.nan


def _key(name: str, prompt: str, picture: Image.Image) -> bytes:
    sha = hashlib.sha256(f"{name}\0{prompt}\0{picture.size}\0".encode())
    sha.update(picture.convert("RGB").tobytes())
    return sha.digest()


def _score(reward: Reward, name: str, prompts: list[str], pixels: list[np.ndarray], columns: Columns) -> Scored:
    """Returns the rewards of pictures; where not all of them succeed at once, of each by itself."""
    try:
        values = reward(prompts, [Image.fromarray(one) for one in pixels], **columns)
    except Exception as error:  # whatever a reward may raise
        if len(prompts) == 1:
            return [math.nan], [f"{name}: {type(error).__name__}: {error}"]
        rows = [
            _score(reward, name, [prompt], [one], {key: [value[row]] for key, value in columns.items()})
            for row, (prompt, one) in enumerate(zip(prompts, pixels, strict=True))
        ]
        return [value for values, _ in rows for value in values], [text for _, why in rows for text in why]
    if len(values) != len(prompts):
        raise ValueError(f"reward {name} must return {len(prompts)} numbers, got {len(values)}")
    wrong = [value for value in values if value is not None and not math.isfinite(value)]
    return list(values), [f"{name}: must be finite, got {value}" for value in wrong]


_in_worker: dict[str, Reward] = {}


def _start_worker(rewards: Mapping[str, RewardConfig]) -> None:
    """Builds the rewards once for each process; Ctrl-C is the business of the one that began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _in_worker.update({name: config.build() for name, config in rewards.items()})


def _score_in_worker(name: str, prompts: list[str], pixels: list[np.ndarray], columns: Columns) -> Scored:
    return _score(_in_worker[name], name, prompts, pixels, columns)
