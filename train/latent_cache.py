"""Latents and codes of scenes, encoded once and kept in one file: training then spends its time on the decoder alone.

A file says by a hash what it was made of: auto-encoder, image tokenizer, and what the scenes look like. One that was
made of anything else is refused.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rebus.data.emoji import EmojiPack
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import Scene
from rebus.model.command_line import spinner
from rebus.model.vae import encode_latents
from rebus.tokenizers.image_tokenizer import ImageTokenizer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

_BATCH_SIZE = 32
_NUM_SHOWN = 64
"""Scenes whose pixels stand for all in the hash: other emoji, concepts or ways to draw would show in them."""


@dataclass(frozen=True, kw_only=True)
class LatentCacheConfig:
    """Where the file is, and which scenes are in it."""

    file: Path = Path("runs/latents.safetensors")
    """The file, written by the first run that finds none; 8 KB for each scene of 128 px in the mini latents, four times
    as much for one of 256 px."""
    num_scenes: int = 16384
    """Scenes, which a long training sees several times, with other noise, times and spoilt codes each time."""
    seed: int = 0
    """Decides the scenes."""

    def __post_init__(self) -> None:
        if self.num_scenes < 1:
            raise ValueError(f"cache.num_scenes must be at least 1, got {self.num_scenes}")


class Encoded(NamedTuple):
    """Latents and codes of pictures."""

    latents: Float[Tensor, "batch channels height width"]
    ids: Int[Tensor, "batch positions streams"]


class LatentCache:
    """Reads rows of the file, and nothing else of it, into memory."""

    def __init__(self, config: LatentCacheConfig, sampler: SceneSampler, made_of: str, scale: int = 1) -> None:
        """Opens a file that is there.

        Args:
            config: which file.
            sampler: where its scenes come from.
            made_of: the hash that it must have.
            scale: how many times as large as usual the pictures of its latents are.

        Raises:
            ValueError: if it holds no latents, or those of something else.
        """
        try:
            self._file = safetensors.safe_open(config.file, framework="pt")
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{config.file} must hold latents and codes, got none ({error})") from error
        found = (self._file.metadata() or {}).get("made_of")
        if found != made_of:
            raise ValueError(
                f"{config.file} must be made of the same auto-encoder, image tokenizer, scenes, num_scenes and seed "
                f"({made_of}), got {found}: name another file, or remove this one"
            )
        self.config, self.sampler, self.scale = config, sampler, scale

    def drawn(self, batch_size: int, *, seed: int, step: int) -> list[int]:
        """Returns the numbers of the scenes of a step's batch, each drawn as a pure function of (seed, step, row)."""
        rngs = (random.Random(f"{seed}/{step}/{row}/cached") for row in range(batch_size))
        return [rng.randrange(self.config.num_scenes) for rng in rngs]

    def rows(self, indices: Sequence[int]) -> Encoded:
        """Returns the latents, in float32, and codes of some scenes, on the processor."""
        latents, ids = (self._file.get_slice(name) for name in Encoded._fields)
        return Encoded(
            torch.cat([latents[index : index + 1] for index in indices]).float(),
            torch.cat([ids[index : index + 1] for index in indices]).long(),
        )

    def scenes(self, indices: Sequence[int]) -> list[Scene]:
        """Returns some scenes themselves."""
        return [_scenes(self.config, self.sampler, index, index + 1)[0] for index in indices]

    def pictures(self, indices: Sequence[int]) -> Float[Tensor, "batch 3 height width"]:
        """Returns the pictures of some scenes in [0, 1]: drawing one takes no longer than reading it would."""
        return pictures_of(self.scenes(indices), self.sampler.pack, self.scale) / 255


def open_cache(
    config: LatentCacheConfig,
    sampler: SceneSampler,
    vae: "AutoencoderKL",
    vae_hash: str,
    tokenizer: ImageTokenizer,
    scale: int = 1,
) -> LatentCache:
    """Returns the cache of a config, after writing it if there is none.

    Several processes that find none write the same, each by itself.

    Args:
        config: which file, and which scenes.
        sampler: where the scenes come from.
        vae: makes the latents.
        vae_hash: that of its weights.
        tokenizer: makes the codes, always of scenes of the usual size.
        scale: how many times as large as usual the pictures of the latents are.

    Raises:
        ValueError: if the file holds something else.
    """
    made_of = _hash(config, sampler, vae_hash, tokenizer.hash, scale)
    if not config.file.exists():
        starts = range(0, config.num_scenes, _BATCH_SIZE)
        scenes = (_scenes(config, sampler, start, min(start + _BATCH_SIZE, config.num_scenes)) for start in starts)
        _write(config, made_of, (encode(vae, tokenizer, sampler.pack, part, scale) for part in scenes))
    return LatentCache(config, sampler, made_of, scale)


@torch.no_grad()
def encode(
    vae: "AutoencoderKL", tokenizer: ImageTokenizer, pack: EmojiPack, scenes: list[Scene], scale: int = 1
) -> Encoded:
    """Returns the latents of scenes, drawn ``scale`` times as large as usual, and their codes.

    They are on the device of the auto-encoder; codes are -1 beyond a picture's last.
    """
    device = vae.encoder.conv_in.weight.device
    drawn = {each: pictures_of(scenes, pack, each).to(device) / 255 for each in {1, scale}}
    tokens = tokenizer.encode(drawn[1])
    missing = tokenizer.layout.num_positions - tokens.ids.shape[1]
    return Encoded(encode_latents(vae, drawn[scale]), F.pad(tokens.ids, (0, 0, 0, missing), value=-1))


def _write(config: LatentCacheConfig, made_of: str, batches: Iterable[Encoded]) -> None:
    with spinner(f"encoding {config.num_scenes} scenes into {config.file}"):
        # Latents have unit spread, so half precision is finer than what the auto-encoder can tell apart.
        columns = zip(*((part.latents.half().cpu(), part.ids.int().cpu()) for part in batches), strict=True)
        tensors = {name: torch.cat(column).contiguous() for name, column in zip(Encoded._fields, columns, strict=True)}
    config.file.parent.mkdir(parents=True, exist_ok=True)
    new = config.file.with_name(f".{config.file.name}.{os.getpid()}.new")
    safetensors.torch.save_file(tensors, new, metadata={"made_of": made_of})
    os.replace(new, config.file)


def _scenes(config: LatentCacheConfig, sampler: SceneSampler, start: int, stop: int) -> list[Scene]:
    """Returns scenes ``start`` to ``stop`` of the file, each a pure function of seed and number."""
    return [scene_rows(sampler, 1, seed=config.seed, step=index)[0] for index in range(start, stop)]


def _hash(config: LatentCacheConfig, sampler: SceneSampler, vae_hash: str, tokenizer_hash: str, scale: int) -> str:
    shown = pictures_of(_scenes(config, sampler, 0, min(_NUM_SHOWN, config.num_scenes)), sampler.pack, scale)
    pixels = hashlib.sha256(shown.numpy().tobytes()).hexdigest()
    values = {
        "vae": vae_hash,
        "image_tokenizer": tokenizer_hash,
        "num_scenes": config.num_scenes,
        "seed": config.seed,
        "scenes": pixels,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
