"""Pretrains the language model on captions, pictures, questions, edits and stories as one mixture of documents.

python -m rebus.train.pretrain --preset mini --image_tokenizer runs/tokenizer/export --run.output runs/pretrain
torchrun --standalone --nproc_per_node 2 -m rebus.train.pretrain --preset mini ...    # under DeepSpeed
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rebus.data.emoji import EmojiPack
from rebus.model.language_model import LanguageModelConfig, place_codes
from rebus.model.trained_weights import ALL_WEIGHTS, LoraTraining, TrainingChoice
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train import dry_run
from rebus.train.base import empty_base, load_base
from rebus.train.config import CosineFall, OptimConfig, RunConfig, parse
from rebus.train.language_stage import (
    LanguageStage,
    chat_prompts,
    held_out_captions,
    scene_samples,
    train_text_tokenizer,
)
from rebus.train.loop import launch
from rebus.train.runtime import launched_processes, loaded_dtype


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
    """The model, if there is no base."""
    base: Path | None = None
    """Folder of a stock language model to start from; it brings its text tokenizer."""
    training: TrainingChoice = ALL_WEIGHTS
    """What of the model trains."""
    row_length: int = 512
    """Ids of a row."""
    by_level: bool = False
    """Whether the model learns to draw a level of codes at once, too, where the image tokenizer has levels."""
    chats: bool = False
    """Whether it reads chats instead of documents, as finetuning does: for a training too short to have both."""
    shards: dict[str, float] = field(default_factory=dict)
    """Folders of shards to train on instead of documents about scenes, and how often a sample is drawn from each."""
    held_out_shards: Path | None = None
    """Folder of shards to validate on instead of held-out scenes."""
    num_text_pieces: int = 2000
    """Pieces of the text tokenizer, which is trained first, if there is no base."""
    num_text_samples: int = 12_000
    """Samples whose text it is trained on."""


def pretrain_stage(config: PretrainConfig, pack: EmojiPack) -> LanguageStage:
    """Returns the stage with a fresh language model and a text tokenizer trained on the project's own text.

    With a base, that is extended instead.

    Raises:
        ValueError: if there is a base that cannot be extended, or shards are not of its tokenizers.
    """
    samples, held_out = scene_samples(pack)
    image_tokenizer = ImageTokenizer.load(config.image_tokenizer)
    generator = torch.Generator().manual_seed(config.run.seed)
    if config.base is not None:
        dtype = loaded_dtype(config.run, launched_processes())
        model, text_tokenizer = load_base(config.base, image_tokenizer, generator, dtype)
    else:
        text_tokenizer = train_text_tokenizer(samples, config.num_text_pieces, config.num_text_samples)
        vocabulary = text_tokenizer.vocabulary(image_tokenizer.layout)
        model = config.language_model.build(vocabulary, generator)
        place_codes(model, vocabulary, image_tokenizer.code_features(), generator)
    bos, vocabulary = text_tokenizer.special.bos, text_tokenizer.vocabulary(image_tokenizer.layout)
    prompts = [[bos, *text_tokenizer.encode(caption)] for caption in held_out_captions(held_out)]
    return LanguageStage(
        config.run,
        model,
        text_tokenizer,
        image_tokenizer,
        (samples.chat, held_out.chat) if config.chats else (samples.document, held_out.document),
        config.row_length,
        chat_prompts(held_out, text_tokenizer, vocabulary) if config.chats else prompts,
        by_level=config.by_level,
        shards=config.shards,
        held_out_shards=config.held_out_shards,
        training=config.training,
    )


def empty_model(config: PretrainConfig) -> PreTrainedModel:
    """Returns the model on the meta device as DeepSpeed would find it: its sizes without its weights."""
    layout = ImageTokenizer.load(config.image_tokenizer).layout
    if config.base is not None:
        model, vocabulary = empty_base(config.base, layout, getattr(torch, config.run.dtype))
    else:
        vocabulary = Vocabulary(config.num_text_pieces, layout)
        with torch.device("meta"):
            model = config.language_model.build(vocabulary, torch.Generator())
    return config.training.prepare(model, vocabulary, seed=0).model


def mini() -> PretrainConfig:
    """The shipped language model: 17 million parameters, one to two cores, 51 minutes."""
    return PretrainConfig(
        run=RunConfig(output=Path("runs/pretrain"), steps=2200, batch_size=2, save_every=200, validate_every=400),
        optim=OptimConfig(lr=1.5e-3, warmup_steps=100, cooldown_fraction=0.2, weight_decay=0.05, beta2=0.98),
        image_tokenizer=Path("runs/tokenizer/export"),
        row_length=1024,
    )


def compared() -> PretrainConfig:
    """The small language model that every image tokenizer of a comparison gets."""
    config = mini()
    sizes = LanguageModelConfig(dim=256, num_layers=6, num_heads=4, num_kv_heads=4, ffn_dim=704)
    return replace(config, language_model=sizes, chats=True)


def smollm2() -> PretrainConfig:
    """SmolLM2 with 135 million parameters, which ``python -m rebus.train.base`` writes, learns to read and draw."""
    return PretrainConfig(
        run=RunConfig(output=Path("runs/pretrain_135m"), steps=4000, batch_size=8, save_every=200, validate_every=500),
        optim=OptimConfig(lr=5e-4, warmup_steps=100, cooldown_fraction=0.2, weight_decay=0.05, beta2=0.98),
        image_tokenizer=Path("assets/mini/image_tokenizer"),
        base=Path("runs/smollm2"),
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


def seed_llama_8b() -> PretrainConfig:
    """SEED-LLaMA 8B on 64 devices: adapters and new rows on Vicuna-7B v1.1, pictures as 32 causal codes of 8,192.

    The image tokenizer has ``NestedQueriesConfig(num_queries=32)`` and ``VectorConfig(codebook_size=8192)``. Weights of
    shards are theirs times the samples in a batch of each source: theirs choose a batch, ours a sample.

    Source: Ge et al., "Making LLaMA SEE and Draw with SEED Tokenizer", https://arxiv.org/abs/2310.01218; its code,
    https://github.com/AILab-CVC/SEED at 8476a6c, ``MultiModalLLM/scripts/train_a100_lora_multi_node_pretrain.sh`` and,
    in ``MultiModalLLM/configs``, ``model/vicuna_7b_lora.yaml`` and ``data/multi_torchdata_pretrain.yaml``.
    Differs: RMSNorms and rows of text stay frozen; the epsilon of AdamW is torch's, not 1e-5; samples are packed, not
    padded and cut; the order of picture and text is that of the shards, not drawn. Ours are the number of devices,
    which the script leaves open, and 16 rows of 1,024 ids in a micro-batch: theirs have 24,450 positions on average,
    with padding.
    """
    return PretrainConfig(
        run=RunConfig(
            output=Path("runs/seed_llama_8b"),
            steps=30_000,
            batch_size=64 * 4 * 16,
            accumulation=4,
            activation_checkpointing=True,
            zero_stage=2,
            save_every=1000,
            validate_every=1000,
        ),
        optim=OptimConfig(
            lr=1.5e-4, warmup_steps=900, cooldown_fraction=1.0, fall=CosineFall(lowest=0.05), weight_decay=0.05
        ),
        image_tokenizer=Path("models/image_tokenizer_32x8192"),
        base=Path("models/vicuna-7b-v1.1"),
        training=LoraTraining(rank=16, alpha=32.0, dropout=0.05),
        row_length=1024,
        shards={
            "shards/unsplash_cc3m_coco": 0.5 * 116,
            "shards/laion_coco": 5.0 * 164,
            "shards/mmc4": 2.0 * 26,
            "shards/obelisc": 1.0 * 26,
            "shards/webvid": 0.5 * 116,
            "shards/wikipedia": 1.0 * 26,
        },
        held_out_shards=Path("shards/held_out"),
    )


def xomni_7b() -> PretrainConfig:
    """X-Omni 7B on 64 devices: all of Qwen2.5-7B trains, pictures as codes of 16,384, one for 16 x 16 pixels.

    Source: Geng et al., "X-Omni: Reinforcement Learning Makes Discrete Autoregressive Image Generative Models Great
    Again", https://arxiv.org/abs/2507.22058, for the base and the number of codes.
    Differs: its training code is not public: every number in ``run``, ``optim`` and ``row_length`` and the name of the
    data are ours; no blocks for pictures alone; pictures of one size, not of any that a text before them gives.
    """
    return PretrainConfig(
        run=RunConfig(
            output=Path("runs/xomni_7b"),
            steps=50_000,
            batch_size=64 * 2 * 4,
            accumulation=2,
            activation_checkpointing=True,
            zero_stage=3,
            save_every=1000,
            validate_every=1000,
        ),
        optim=OptimConfig(lr=1e-4, warmup_steps=1000, cooldown_fraction=0.2, weight_decay=0.05),
        image_tokenizer=Path("models/image_tokenizer_16384"),
        base=Path("models/qwen2.5-7b"),
        row_length=4096,
        shards={"shards/train": 1.0},
        held_out_shards=Path("shards/held_out"),
    )


def illume_plus_3b() -> PretrainConfig:
    """ILLUME+ 3B, its third stage, on 64 devices: all of Qwen2.5-3B-Instruct trains, pictures as 131,072 codes.

    Source: Huang et al., "ILLUME+: Illuminating Unified MLLM with Dual Visual Tokenization and Diffusion Refinement",
    https://arxiv.org/abs/2504.01934; its code, https://github.com/illume-unified-mllm/ILLUME_plus at 51de69d,
    ``configs/example/illume_plus_3b/illume_plus_qwen2_5_3b_stage3.py``.
    Differs: pictures are read as codes, not by a vision tower, which has a rate of its own there; codes of both levels,
    32,768 for what is seen and 98,304 for pixels, are one stream, as the recipe ``illume_plus`` of image tokenizers
    makes them; pictures of one size; no text is dropped. Ours are the
    steps, clipping, the name of the data, and 64 packed rows of a step, where theirs are 256 samples.
    """
    return PretrainConfig(
        run=RunConfig(
            output=Path("runs/illume_plus_3b"),
            steps=20_000,
            batch_size=64,
            activation_checkpointing=True,
            zero_stage=2,
            save_every=2000,
            validate_every=2000,
        ),
        optim=OptimConfig(lr=2e-5, warmup_steps=600, cooldown_fraction=1.0, fall=CosineFall(), weight_decay=0.0),
        image_tokenizer=Path("models/image_tokenizer_131072"),
        base=Path("models/qwen2.5-3b-instruct"),
        row_length=4096,
        shards={"shards/train": 1.0},
        held_out_shards=Path("shards/held_out"),
    )


PRESETS = {
    "mini": mini,
    "compared": compared,
    "135m": smollm2,
    "seed_llama_8b": seed_llama_8b,
    "xomni_7b": xomni_7b,
    "illume_plus_3b": illume_plus_3b,
    "tiny": tiny,
}


def main(argv: list[str] | None = None) -> None:
    """Pretrains a language model as the command line says."""
    show = partial(dry_run.show, "rebus.train.pretrain", argv)
    config = parse(PRESETS, argv, __doc__, lambda config, world: show(config, empty_model(config), world))
    launch("pretrain", lambda: pretrain_stage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
