"""A short training on shards of emoji scenes, made for being interrupted: every batch that it reads is noted down.

It is what ``rebus.train.verify_resume`` starts, kills and starts again.
"""

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from rebus.data.emoji import EmojiPack
from rebus.data.rendering import Rendered, render
from rebus.data.samples import pictures, with_tokens
from rebus.data.shards import ShardsInfo, shard_path, write_manifest, write_shard
from rebus.model.command_line import SHIPPED_MODEL
from rebus.model.language_model import LanguageModelConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.language_stage import LanguageStage, scene_samples
from rebus.train.loop import launch

_NUM_SAMPLES, _NUM_SHARDS = 160, 4


@dataclass(frozen=True, kw_only=True)
class SmallTrainingConfig:
    """A small language model on small shards."""

    run: RunConfig
    """Steps and folders."""
    optim: OptimConfig
    """Learning rate and its course."""
    shards: Path
    """Folder of the shards, which are made if they are not there."""
    language_model: LanguageModelConfig = field(
        default_factory=lambda: LanguageModelConfig(dim=32, num_layers=2, num_heads=2, num_kv_heads=2, ffn_dim=64)
    )
    """The model."""
    row_length: int = 512
    """Ids of a row."""


def make_shards(folder: Path, row_length: int) -> None:
    """Writes shards of documents about scenes, with the codes of the shipped image tokenizer."""
    image_tokenizer, text_tokenizer = _tokenizers()
    vocabulary = text_tokenizer.vocabulary(image_tokenizer.layout)
    train_samples, _ = scene_samples(EmojiPack.open())
    rendered: list[Rendered] = []
    for index in range(_NUM_SAMPLES):
        sample = train_samples.document(random.Random(index))
        pixels = [torch.tensor(picture.pixels) for picture in pictures(sample)]
        codes = image_tokenizer.encode(rearrange(torch.stack(pixels), "b h w c -> b c h w").contiguous())
        coded = with_tokens(sample, [codes.row(number) for number in range(len(pixels))])
        rendered.append(render(coded, text_tokenizer, vocabulary))
    folder.mkdir(parents=True)
    ShardsInfo(
        image_tokenizer=image_tokenizer.hash,
        text_tokenizer=text_tokenizer.hash,
        vocabulary=vocabulary.to_dict(),
        source="emoji scenes",
        schema="documents",
        records_per_shard=_NUM_SAMPLES // _NUM_SHARDS,
        max_ids=row_length,
    ).write(folder)
    kept = [one for one in rendered if len(one.ids) <= row_length]
    counts = [write_shard(shard_path(folder, part), kept[part::_NUM_SHARDS], {}) for part in range(_NUM_SHARDS)]
    write_manifest(folder, counts)


def small_stage(config: SmallTrainingConfig) -> LanguageStage:
    """Returns the stage, which notes down beside the run what it reads."""
    image_tokenizer, text_tokenizer = _tokenizers()
    vocabulary = text_tokenizer.vocabulary(image_tokenizer.layout)
    train_samples, held_out = scene_samples(EmojiPack.open())
    stage = LanguageStage(
        config.run,
        config.language_model.build(vocabulary, torch.Generator().manual_seed(config.run.seed)),
        text_tokenizer,
        image_tokenizer,
        (train_samples.document, held_out.document),
        config.row_length,
        [[vocabulary.bos]],
        shards={str(config.shards): 1.0},
    )
    _note_batches(stage, config.run.output)
    return stage


def _note_batches(stage: LanguageStage, output: Path) -> None:
    make_batch = stage.batch

    def noted(step: int, rank: int, world: int) -> Any:
        batch = make_batch(step, rank, world)
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in batch.packed.ids]
        output.mkdir(parents=True, exist_ok=True)
        with (output / f"order-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "rows": rows}) + "\n")
        return batch

    stage.batch = noted


def _tokenizers() -> tuple[ImageTokenizer, TextTokenizer]:
    return ImageTokenizer.load(SHIPPED_MODEL / "image_tokenizer"), TextTokenizer.load(SHIPPED_MODEL)


def small() -> SmallTrainingConfig:
    """A checkpoint every third step."""
    return SmallTrainingConfig(
        run=RunConfig(
            output=Path("runs/small"), steps=60, batch_size=2, dtype="float32", log_every=1, save_every=3, threads=1
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=5),
        shards=Path("runs/small_shards"),
    )


def main(argv: list[str] | None = None) -> None:
    """Trains as the command line says."""
    config = parse({"small": small}, argv, description=__doc__)
    launch("small_training", lambda: small_stage(config), config)


if __name__ == "__main__":
    main()
