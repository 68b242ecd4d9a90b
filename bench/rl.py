"""One rollout of reinforcement learning and its updates on the shipped model: where the seconds go.

python bench/rl.py --detector runs/reward_detector/export

What runs is the stage of ``rebus.train.rl`` as ``--preset mini`` has it, without what a run writes to its folder. Its
parts: codes are drawn, painted and rewarded, the policy and the reference say how likely they are, and updates follow.

``reward_share`` is how long the stage is kept by its rewards, over the whole. They are computed in processes of their
own (``--workers``; 0 has it done in this one) while the likelihoods are. Seconds are those of the clock.

``rollout_vs_engine`` compares codes a second of the rollout's drawing (``Studio.write``), which arranges the weights
anew and reads the prompts, with those of an engine that has them already, given the same requests and seen to draw the
same. These seconds are of processor time, which neighbours on the machine disturb less. All take turns, and medians are
compared; the first round warms up.

Without ``--detector`` there is one of random weights, as large as the trained one. It finds nothing, so fewer groups
differ in what they are worth: ``learned_from``, the share of pictures that the updates see, is smaller, and they are
shorter than in a training.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from rebus.data.emoji import EmojiPack
from rebus.model.command_line import SHIPPED_MODEL
from rebus.model.engine import Engine
from rebus.model.writing import MOST_ROWS
from rebus.train.detector import reward
from rebus.train.rewards.scene_objects import ObjectsRewardConfig
from rebus.train.rl import mini, rl_stage
from rebus.train.rl_stage import RlConfig, RlStage
from rebus.train.rollouts import asked_for
from rebus.train.runtime import autocast
from rebus.train.updates import PlainUpdater

PARTS = ("draw", "paint", "reward", "likelihood")
"""Of a rollout, as the stage times them."""


def random_detector(folder: Path) -> Path:
    """Returns the folder, in which there is now a detector of the size of the one that rewards."""
    torch.manual_seed(0)
    reward().detector.build().save(folder)
    return folder


def config_of(model: Path, detector: Path, pictures: int, workers: int) -> RlConfig:
    """Returns the shipped training, with no sheets of what is drawn."""
    config = mini()
    objects = ObjectsRewardConfig(detector=detector)
    return replace(
        config,
        run=replace(config.run, batch_size=pictures, device="cpu"),
        model=model,
        rewards=replace(config.rewards, objects=objects, workers=workers),
        show_every=None,
    )


def updater_of(stage: RlStage) -> PlainUpdater:
    """Returns what the training updates the model with."""

    def loss(batch: Any) -> Any:
        with autocast(stage.config.run, stage.model.device):
            return stage.loss(batch)

    return PlainUpdater(stage.model.train(), loss, stage.config.optim)


def rollout(stage: RlStage, updater: PlainUpdater, first: int) -> dict[str, float]:
    """Returns the seconds of a rollout with its updates, in all and by part, and what share of it they learn from."""
    start, updating, metrics, learned_from = time.perf_counter(), 0.0, {}, 0.0
    for number in range(stage.config.updates_per_rollout):
        batch = stage.batch(first + number, 0, 1)
        if number == 0:
            metrics, learned_from = batch.metrics, len(batch.rows.codes) / stage.config.run.batch_size
        begun = time.perf_counter()
        updater.update([batch], stage.config.optim.lr)
        updating += time.perf_counter() - begun
    took, parts = time.perf_counter() - start, {part: float(metrics[f"{part}_seconds"]) for part in PARTS}
    return {
        "reward_share": parts["reward"] / took,
        **{f"{part}_seconds": value for part, value in parts.items()},
        "update_seconds": updating,
        "step_seconds": took,
        "learned_from": learned_from,
    }


@torch.no_grad()
def drawing(stage: RlStage, place: int) -> dict[str, float]:
    """Returns the codes a second of the rollout's drawing, and of the engine alone."""
    config, studio = stage.config, stage.studio
    places = [f"bench/{place}/{number}" for number in range(stage.num_groups)]
    asked = [asked_for(stage.training, config.tasks, one, config.group_size) for one in places]
    start = time.process_time()
    groups = studio.write(stage.model, asked)
    written = time.process_time() - start
    requests, engine, rows = studio.requests(asked), Engine(stage.model, stage.vocabulary), []
    start = time.process_time()
    for begin in range(0, len(requests), MOST_ROWS):
        rows += engine.generate(requests[begin : begin + MOST_ROWS], studio.decoding)
    generated = time.process_time() - start
    codes = [row for group in groups for row in group]
    assert [row.ids[1:-1] for row in rows] == codes, "the rollout's codes are not those of the engine"
    number = sum(map(len, codes))
    return {"codes_per_second_rollout": number / written, "codes_per_second_engine": number / generated}


def measure(stage: RlStage, rounds: int, tick: Callable[[], None]) -> dict[str, float]:
    """Returns the median figures of so many rollouts, after one that warms up."""
    updater, told = updater_of(stage), []
    for number in range(rounds + 1):
        first = number * stage.config.updates_per_rollout
        told.append({**rollout(stage, updater, first), **drawing(stage, number)})
        tick()
    medians = {name: statistics.median(one[name] for one in told[1:]) for name in told[0]}
    ratio = medians["codes_per_second_rollout"] / medians["codes_per_second_engine"]
    return {"reward_share": medians.pop("reward_share"), "rollout_vs_engine": ratio, **medians}


def main() -> None:
    """Prints the table, and with ``--json`` one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="saved model (default: the shipped one)")
    parser.add_argument("--detector", type=Path, help="folder of the detector that rewards (default: a random one)")
    parser.add_argument("--pictures", type=int, default=64, help="of a rollout, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3, help="rollouts of which the median counts, after one")
    parser.add_argument("--workers", type=int, default=2, help="processes that compute rewards")
    parser.add_argument("--threads", type=int, default=1, help="threads that work")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    chosen = parser.parse_args()
    if min(chosen.rounds, chosen.threads) < 1:
        parser.error(f"--rounds and --threads must be at least 1, got {chosen.rounds} and {chosen.threads}")
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        detector = chosen.detector or random_detector(Path(folder))
        config = config_of(chosen.model, detector, chosen.pictures, chosen.workers)
        stage = rl_stage(config, EmojiPack.open())
        with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("rollouts and updates", total=chosen.rounds + 1)
            figures = measure(stage, chosen.rounds, partial(progress.advance, task))
        stage.scorer.close()
    table = Table("figure", "")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    Console(width=120).print(table)
    if chosen.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
