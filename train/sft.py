r"""Finetunes a pretrained language model on chats: drawing, answering, describing, editing and telling stories.

python -m rebus.train.sft --preset mini --pretrained runs/pretrain/export --run.output runs/sft

On your own pictures and texts, once ``python -m rebus.data.pretokenize`` has made shards of them:

python -m rebus.train.sft --preset mini --pretrained assets/mini --image_tokenizer assets/mini/image_tokenizer \
    --shards '{"shards/mine": 1}' --run.steps 500 --run.output runs/mine

With ``--mixed '{"shards/mine": 0.3}'`` instead, 3 of 10 samples are yours and the others are chats about scenes.

To teach a model one thing more and keep how it draws, hold it to itself: ``--teacher assets/mini``. So the preset
``mini_drill`` asks a chat model a dozen questions about each picture, each by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rebus.data.emoji import EmojiPack
from rebus.data.mixed_samples import MixedSamples
from rebus.data.samples import Sample
from rebus.data.scene_text import CHAT_KINDS, CHAT_WEIGHTS
from rebus.data.shards import Shards
from rebus.model.trained_weights import ALL_WEIGHTS, TrainingChoice
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.train import dry_run
from rebus.train.base import empty_base, load_base
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.language_stage import LanguageStage, chat_prompts, scene_samples
from rebus.train.loop import launch
from rebus.train.runtime import launched_processes, loaded_dtype


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """A whole supervised finetuning."""

    run: RunConfig
    """Steps, rows of a batch, folders."""
    optim: OptimConfig
    """Learning rate and its course."""
    pretrained: Path
    """Exported language model with its text tokenizer."""
    image_tokenizer: Path
    """Exported image tokenizer that the language model was pretrained with."""
    base: Path | None = None
    """Folder of a stock language model to start from instead of ``pretrained``; it brings its text tokenizer."""
    training: TrainingChoice = ALL_WEIGHTS
    """What of the model trains."""
    row_length: int = 512
    """Ids of a row."""
    chats: dict[str, float] = field(default_factory=lambda: dict(CHAT_WEIGHTS))
    """How often chats about scenes are of each kind: draw, questions, describe, edit, story and drill, which is many
    questions about one picture, each asked by itself."""
    teacher: Path | None = None
    """Exported language model whose way to draw is kept: what it would draw is learned in place of the pictures."""
    by_level: bool = False
    """Whether the model learns to draw a level of codes at once, too, where the image tokenizer has levels."""
    shards: dict[str, float] = field(default_factory=dict)
    """Folders of shards to train on instead of chats about scenes, and how often a sample is drawn from each."""
    mixed: dict[str, float] = field(default_factory=dict)
    """Folders of shards to train on among chats about scenes, and the share of all samples that is drawn from each."""
    held_out_shards: Path | None = None
    """Folder of shards to validate on instead of held-out scenes."""

    def __post_init__(self) -> None:
        if not (set(self.chats) <= set(CHAT_KINDS) and any(self.chats.values()) and min(self.chats.values()) >= 0):
            raise ValueError(f"chats must weigh some of {', '.join(CHAT_KINDS)}, got {self.chats}")
        if self.mixed and self.shards:
            raise ValueError(f"mixed must be none where shards take the place of scenes, got {self.mixed}")


def sft_stage(config: SftConfig, pack: EmojiPack) -> LanguageStage:
    """Returns the stage with the pretrained language model.

    Raises:
        ValueError: if the folder holds no language model, or one of another vocabulary.
    """
    _check_pretrained(config)
    samples, held_out = scene_samples(pack, config.chats)
    image_tokenizer = ImageTokenizer.load(config.image_tokenizer)
    dtype = loaded_dtype(config.run, launched_processes())
    if config.base is not None:
        generator = torch.Generator().manual_seed(config.run.seed)
        model, text_tokenizer = load_base(config.base, image_tokenizer, generator, dtype)
    else:
        text_tokenizer = TextTokenizer.load(config.pretrained)
        model = _load(config.pretrained, dtype)
    vocabulary = text_tokenizer.vocabulary(image_tokenizer.layout)
    return LanguageStage(
        config.run,
        model,
        text_tokenizer,
        image_tokenizer,
        (_mixed(config, samples.chat, text_tokenizer, image_tokenizer), held_out.chat),
        config.row_length,
        chat_prompts(held_out, text_tokenizer, vocabulary),
        by_level=config.by_level,
        shards=config.shards,
        held_out_shards=config.held_out_shards,
        training=config.training,
        teacher=None if config.teacher is None else _load_teacher(config.teacher, text_tokenizer, dtype),
    )


def _load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)


def _load_teacher(folder: Path, text_tokenizer: TextTokenizer, dtype: torch.dtype) -> PreTrainedModel:
    if not (folder / "config.json").is_file():
        raise ValueError(f"teacher must be an exported language model, got {folder}")
    if TextTokenizer.load(folder).hash != text_tokenizer.hash:
        raise ValueError(f"teacher must have the text tokenizer of the model that learns, got another one in {folder}")
    return _load(folder, dtype)


def empty_model(config: SftConfig) -> PreTrainedModel:
    """Returns the model on the meta device as DeepSpeed would find it: its sizes without its weights.

    Raises:
        ValueError: if the folder holds no language model.
    """
    _check_pretrained(config)
    layout, dtype = ImageTokenizer.load(config.image_tokenizer).layout, getattr(torch, config.run.dtype)
    if config.base is not None:
        model, vocabulary = empty_base(config.base, layout, dtype)
    else:
        vocabulary = TextTokenizer.load(config.pretrained).vocabulary(layout)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.pretrained), dtype=dtype)
    return config.training.prepare(model, vocabulary, seed=0).model


def _mixed(
    config: SftConfig,
    make_sample: Callable[[Random], Sample],
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
) -> Callable[[Random], Sample]:
    """Returns what makes samples, with those of shards among them."""
    folders = [Shards(Path(folder)) for folder in config.mixed]
    for shards in folders:
        shards.check_made_by(image_tokenizer=image_tokenizer.hash, text_tokenizer=text_tokenizer.hash)
        if shards.info.max_ids > config.row_length:
            got = config.row_length
            raise ValueError(f"row_length must be at least the {shards.info.max_ids} ids of a mixed sample, got {got}")
    return MixedSamples(make_sample, folders, list(config.mixed.values()), text_tokenizer) if folders else make_sample


def _check_pretrained(config: SftConfig) -> None:
    if config.base is None and not (config.pretrained / "config.json").is_file():
        raise ValueError(f"pretrained must be an exported language model, got {config.pretrained}")


def mini() -> SftConfig:
    """The chat model that ``rl`` and ``mini_drill`` then made what ships: two cores, five hours."""
    return SftConfig(
        run=RunConfig(output=Path("runs/sft"), steps=19_100, batch_size=2, save_every=200, validate_every=2000),
        optim=OptimConfig(lr=1e-3, warmup_steps=30, cooldown_fraction=0.9, weight_decay=0.05, beta2=0.98),
        pretrained=Path("runs/pretrain/export"),
        image_tokenizer=Path("runs/tokenizer/export"),
        row_length=1024,
    )


def mini_drill() -> SftConfig:
    """A chat model learns to find what a question names, and draws on as it did: two cores, an hour and a half."""
    return SftConfig(
        run=RunConfig(output=Path("runs/drill"), steps=2000, batch_size=4, save_every=100, validate_every=2000),
        optim=OptimConfig(lr=1e-3, warmup_steps=30, cooldown_fraction=0.5, weight_decay=0.05, beta2=0.98),
        pretrained=Path("assets/mini"),
        image_tokenizer=Path("assets/mini/image_tokenizer"),
        chats={"drill": 0.59, "draw": 0.3, "questions": 0.04, "edit": 0.04, "story": 0.03},
        teacher=Path("assets/mini"),
        row_length=1024,
    )


def tiny() -> SftConfig:
    """A training of seconds, for tests."""
    return SftConfig(
        run=RunConfig(output=Path("runs/sft_tiny"), steps=10, batch_size=2, dtype="float32"),
        optim=OptimConfig(lr=1e-3, warmup_steps=2),
        pretrained=Path("runs/pretrain_tiny/export"),
        image_tokenizer=Path("runs/tokenizer_tiny/export"),
    )


PRESETS = {"mini": mini, "mini_drill": mini_drill, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Finetunes a language model as the command line says."""
    show = partial(dry_run.show, "rebus.train.sft", argv)
    config = parse(PRESETS, argv, __doc__, lambda config, world: show(config, empty_model(config), world))
    launch("sft", lambda: sft_stage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
