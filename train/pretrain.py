"""Pretrains the language model on captions, pictures, questions, edits and stories as one mixture of documents.

python -m rebus.train.pretrain --preset mini --image_tokenizer runs/tokenizer/export --run.output runs/pretrain
torchrun --standalone --nproc_per_node 2 -m rebus.train.pretrain --preset mini ...    # under DeepSpeed
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from rebus.data.emoji import EmojiPack
from rebus.model.language_model import LanguageModelConfig, place_codes
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.language_stage import LanguageStage, held_out_captions, scene_samples, train_text_tokenizer
from rebus.train.loop import launch


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A whole pretraining."""

    run: RunConfig
    """Steps, rows of a batch, folders."""
    optim: OptimConfig
    """Learning rate and its course."""
    image_tokenizer: Path
    """Exported image tokenizer."""
    language_model: LanguageModelConfig = LanguageModelConfig()
    """The model."""
    row_length: int = 512
    """Ids of a row."""
    by_level: bool = False
    """Whether the model learns to draw a level of codes at once, too, where the image tokenizer has levels."""
    num_text_pieces: int = 2000
    """Pieces of the text tokenizer, which is trained first."""
    num_text_samples: int = 12_000
    """Samples whose text it is trained on."""


def pretrain_stage(config: PretrainConfig, pack: EmojiPack) -> LanguageStage:
    """Returns the stage with a fresh language model and a text tokenizer trained on the project's own text."""
    samples, held_out = scene_samples(pack)
    image_tokenizer = ImageTokenizer.load(config.image_tokenizer)
    text_tokenizer = train_text_tokenizer(samples, config.num_text_pieces, config.num_text_samples)
    vocabulary = Vocabulary(text_tokenizer.num_pieces, image_tokenizer.layout)
    generator = torch.Generator().manual_seed(config.run.seed)
    model = config.language_model.build(vocabulary, generator)
    place_codes(model, vocabulary, image_tokenizer.code_features(), generator)
    return LanguageStage(
        config.run,
        model,
        text_tokenizer,
        image_tokenizer,
        (samples.document, held_out.document),
        config.row_length,
        [[vocabulary.bos, *text_tokenizer.encode(caption)] for caption in held_out_captions(held_out)],
        by_level=config.by_level,
    )


def mini() -> PretrainConfig:
    """The shipped language model: 17 million parameters, one to two cores, 51 minutes."""
    return PretrainConfig(
        run=RunConfig(output=Path("runs/pretrain"), steps=2200, batch_size=2, save_every=200, validate_every=400),
        optim=OptimConfig(lr=1.5e-3, warmup_steps=100, cooldown_fraction=0.2, weight_decay=0.05, beta2=0.98),
        image_tokenizer=Path("runs/tokenizer/export"),
        row_length=1024,
    )


def tiny() -> PretrainConfig:
    """A training of seconds, for tests."""
    return PretrainConfig(
        run=RunConfig(output=Path("runs/pretrain_tiny"), steps=30, batch_size=2, dtype="float32"),
        optim=OptimConfig(lr=3e-3, warmup_steps=5),
        image_tokenizer=Path("runs/tokenizer_tiny/export"),
        language_model=LanguageModelConfig(dim=64, num_layers=2, num_heads=2, num_kv_heads=2, ffn_dim=128),
        num_text_pieces=500,
        num_text_samples=300,
    )


PRESETS = {"mini": mini, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Pretrains a language model as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("pretrain", lambda: pretrain_stage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
