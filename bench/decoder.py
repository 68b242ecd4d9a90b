"""The diffusion decoder of a saved model: seconds for a picture, what few steps cost, and training from a cache.

python bench/decoder.py --threads 2

Painting, one picture at a time, side by side in one run:

ours        ``DecoderPipeline`` at the model's own number of steps, and at 25
diffusers   the same decoder at 25 steps by ``FlowMatchEulerDiscreteScheduler``, and its ``AutoencoderKL``

``seconds_per_picture`` is the median of ours; ``speedup_vs_25_steps`` is diffusers over ours, after both are seen to
paint the same in 25 steps. ``quality_at_1_2_4_25`` are the figures of ``rebus.evaluation.decoder_steps``.

Training, pictures a second of whole steps, each picture with one noise:

cached      from latents and codes in a file (train/latent_cache.py), bfloat16 arithmetic
uncached    the same, but pictures are drawn and go through auto-encoder and image tokenizer at each step
plain       uncached, all in float32: the loop that one would write

``training_vs_plain_loop`` is cached over plain, ``training_vs_uncached`` is cached over uncached.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rebus.data.emoji import EmojiPack
from rebus.evaluation.decoder_steps import SHEET_STEPS, curves
from rebus.evaluation.painted_scenes import PaintedScenes, painted_scenes, painters
from rebus.model.command_line import SHIPPED_MODEL
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.rebus import Rebus
from rebus.model.vae import decode_latents, load_vae
from rebus.tokenizers.tokens import Tokens
from rebus.train.decoder import DecoderStage, DecoderStageConfig, mini
from rebus.train.latent_cache import LatentCacheConfig
from rebus.train.runtime import autocast
from rebus.train.updates import PlainUpdater

MANY_STEPS = 25
BATCH_SIZE = 16
"""Pictures of a training step."""


@torch.no_grad()
def by_diffusers(painter: DecoderPipeline, vae: Any, tokens: Tokens, seed: int) -> Tensor:
    """Paints as a pipeline of diffusers does: its scheduler steps, then its auto-encoder decodes."""
    decoder = painter.decoder
    scheduler: Any = FlowMatchEulerDiscreteScheduler()  # its annotations fit none of its uses
    shape = (decoder.config.latent_channels, *decoder.config.sizes[0])
    state = torch.randn(shape, generator=torch.Generator().manual_seed(seed))[None]
    times = torch.linspace(1, 1 / MANY_STEPS, MANY_STEPS)
    scheduler.set_timesteps(sigmas=times.tolist())
    for at, timestep in zip(times, scheduler.timesteps, strict=True):
        velocity = decoder(state, at[None], tokens.ids, torch.full((1,), 1 / MANY_STEPS))
        state = scheduler.step(velocity, timestep, state, return_dict=False)[0]
    return decode_latents(vae, state)


def seconds(contenders: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Returns the median time of each, all in turn; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(index)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def painting(model: Rebus, painter: DecoderPipeline, tokens: Tokens, rounds: int) -> dict[str, float]:
    """Returns the seconds that each contender takes for a picture.

    Raises:
        AssertionError: if ours and that of diffusers are different pictures.
    """
    vae, own_steps = load_vae(model.saved.path("vae")), model.saved.settings.steps
    same = (painter.render(tokens, steps=MANY_STEPS, seed=7) - by_diffusers(painter, vae, tokens, 7)).abs().max()
    assert same < 1e-3, f"ours and that of diffusers must be the same picture, got {same} apart"
    return seconds(
        {
            "ours": lambda index: painter.render(tokens, steps=own_steps, seed=index),
            f"ours, {MANY_STEPS} steps": lambda index: painter.render(tokens, steps=MANY_STEPS, seed=index),
            f"diffusers, {MANY_STEPS} steps": lambda index: by_diffusers(painter, vae, tokens, index),
        },
        rounds,
    )


def quality(scenes: PaintedScenes, painter: DecoderPipeline) -> dict[str, dict[int, float]]:
    """Returns the figures at 1, 2, 4 and 25 steps, by name."""
    figures = curves(scenes, {"": painter})[0][""]
    names = ("psnr_db", "ssim", "perceptual", "frechet", "judge")
    chosen = {steps: {**figures[steps], "judge": figures[steps]["judge"]["score"]} for steps in SHEET_STEPS}
    return {name: {steps: one[name] for steps, one in chosen.items()} for name in names}


def step_of(config: DecoderStageConfig, pack: EmojiPack) -> Callable[[int], object]:
    """Returns what makes a batch and trains on it, as the loop does."""
    stage = DecoderStage(config, pack)

    def loss(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(config.run, torch.device("cpu")):
            return stage.loss(batch)

    updater = PlainUpdater(stage.model, loss, config.optim)
    return lambda index: updater.update([stage.batch(index, 0, 1)], config.optim.lr)


def training(model: Path, rounds: int) -> dict[str, float]:
    """Returns the pictures a second of each contender."""
    pack, config = EmojiPack.open(), mini()
    run = replace(config.run, batch_size=BATCH_SIZE, device="cpu")
    parts = {"vae": model / "vae", "image_tokenizer": model / "image_tokenizer"}
    uncached = replace(config, run=run, noises_per_picture=1, num_start_pictures=1, **parts)
    with tempfile.TemporaryDirectory() as folder:
        cache = LatentCacheConfig(file=Path(folder) / "latents.safetensors", num_scenes=8 * BATCH_SIZE)
        stages = {
            "cached": replace(uncached, cache=cache),
            "uncached": uncached,
            "plain": replace(uncached, run=replace(run, dtype="float32")),
        }
        took = seconds({name: step_of(one, pack) for name, one in stages.items()}, rounds)
    return {name: BATCH_SIZE / each for name, each in took.items()}


def main() -> None:
    """Prints the tables, and with ``--json`` one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="saved model (default: the shipped one)")
    parser.add_argument("--decoder", type=Path, help="another decoder of its codes (default: its own)")
    parser.add_argument("--limit", type=int, default=120, help="held-out scenes of the quality (default: 120)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of which the median counts (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads that work (default: 2)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    chosen = parser.parse_args()
    if min(chosen.rounds, chosen.threads) < 1 or chosen.limit < 2:
        parser.error(f"--rounds, --threads, --limit: at least 1, 1, 2; got {chosen}")
    torch.set_num_threads(chosen.threads)
    model = Rebus.load(chosen.model)
    (painter,) = painters(model, [] if chosen.decoder is None else [chosen.decoder]).values()
    scenes = painted_scenes(model.image_tokenizer, chosen.limit)
    took = painting(model, painter, scenes.tokens[0].row(0), chosen.rounds)
    trained, good = training(chosen.model, chosen.rounds), quality(scenes, painter)
    figures = {
        "seconds_per_picture": took["ours"],
        "speedup_vs_25_steps": took[f"diffusers, {MANY_STEPS} steps"] / took["ours"],
        "quality_at_1_2_4_25": good,
        "training_vs_plain_loop": trained["cached"] / trained["plain"],
        "training_vs_uncached": trained["cached"] / trained["uncached"],
        "milliseconds": {name: 1000 * each for name, each in took.items()},
        "pictures_per_second_of_training": trained,
    }
    _show(figures)
    if chosen.json:
        print(json.dumps(figures))


def _show(figures: dict[str, Any]) -> None:
    console, good = Console(width=120), figures["quality_at_1_2_4_25"]
    units = {"milliseconds": "ms a picture", "pictures_per_second_of_training": "pictures trained a second"}
    for name, unit in units.items():
        table = Table(unit, *figures[name])
        table.add_row("", *(f"{value:.1f}" for value in figures[name].values()))
        console.print(table)
    table = Table("steps", *map(str, SHEET_STEPS))
    for name, values in good.items():
        table.add_row(name, *(f"{value:.4g}" for value in values.values()))
    console.print(table)
    for name in ("seconds_per_picture", "speedup_vs_25_steps", "training_vs_plain_loop", "training_vs_uncached"):
        console.print(f"{name}: {figures[name]:.3g}")


if __name__ == "__main__":
    main()
