"""Batches of composed scenes for the stages that learn from pictures alone."""

import random

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from rebus.data.emoji import EmojiPack
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import Scene, draw


def scene_rows(
    sampler: SceneSampler, batch_size: int, *, seed: int, step: int, rank: int = 0, world: int = 1
) -> list[Scene]:
    """Returns one rank's scenes of a step's batch.

    Each scene is a pure function of (seed, step, row), so a resumed training and any number of ranks see the same.
    """
    return [sampler.scene(random.Random(f"{seed}/{step}/{row}")) for row in range(batch_size)[rank::world]]


def pictures_of(scenes: list[Scene], pack: EmojiPack, scale: int = 1) -> UInt8[Tensor, "batch 3 height width"]:
    """Returns the scenes, drawn ``scale`` times as large as usual."""
    return rearrange(torch.from_numpy(np.stack([draw(scene, pack, scale) for scene in scenes])), "b h w c -> b c h w")
