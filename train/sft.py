r"""Finetunes a pretrained language model on chats: drawing, answering, describing, editing and telling stories.

python -m rebus.train.sft --preset mini --pretrained runs/pretrain/export --run.output runs/sft

On your own pictures and texts, once ``python -m rebus.data.pretokenize`` has made shards of them:

python -m rebus.train.sft --preset mini --pretrained assets/mini --image_tokenizer assets/mini/image_tokenizer \
    --shards '{"shards/mine": 1}' --run.steps 500 --run.output runs/mine
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from rebus.data.emoji import EmojiPack
from rebus.data.rendering import render_prompt
from rebus.data.samples import Message
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.language_stage import LanguageStage, held_out_captions, scene_samples
from rebus.train.loop import launch


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
    row_length: int = 512
    """Ids of a row."""
    by_level: bool = False
    """Whether the model learns to draw a level of codes at once, too, where the image tokenizer has levels."""
    shards: dict[str, float] = field(default_factory=dict)
    """Folders of shards to train on instead of chats about scenes, and how often a sample is drawn from each."""


def sft_stage(config: SftConfig, pack: EmojiPack) -> LanguageStage:
    """Returns the stage with the pretrained language model.

    Raises:
        ValueError: if the folder holds no language model, or one of another vocabulary.
    """
    if not (config.pretrained / "config.json").is_file():
        raise ValueError(f"pretrained must be an exported language model, got {config.pretrained}")
    samples, held_out = scene_samples(pack)
    image_tokenizer = ImageTokenizer.load(config.image_tokenizer)
    text_tokenizer = TextTokenizer.load(config.pretrained)
    vocabulary = Vocabulary(text_tokenizer.num_pieces, image_tokenizer.layout)
    requests = [(Message("user", (caption,)),) for caption in held_out_captions(held_out)]
    return LanguageStage(
        config.run,
        LlamaForCausalLM.from_pretrained(config.pretrained, dtype=torch.float32),
        text_tokenizer,
        image_tokenizer,
        (samples.chat, held_out.chat),
        config.row_length,
        [render_prompt(request, text_tokenizer, vocabulary) for request in requests],
        by_level=config.by_level,
        shards=config.shards,
    )


def mini() -> SftConfig:
    """The shipped chat model: two cores, five hours."""
    return SftConfig(
        run=RunConfig(output=Path("runs/sft"), steps=19_100, batch_size=2, save_every=200, validate_every=2000),
        optim=OptimConfig(lr=1e-3, warmup_steps=30, cooldown_fraction=0.9, weight_decay=0.05, beta2=0.98),
        pretrained=Path("runs/pretrain/export"),
        image_tokenizer=Path("runs/tokenizer/export"),
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


PRESETS = {"mini": mini, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Finetunes a language model as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("sft", lambda: sft_stage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
