"""Trains the image tokenizer on composed scenes and their captions.

python -m rebus.train.tokenizer --preset mini --run.output runs/tokenizer
python -m rebus.train.tokenizer --preset mini_nested --run.output runs/tokenizer_nested

A diffusion decoder may learn with the tokenizer, and is then in ``export/decoder``:

python -m rebus.train.tokenizer --preset mini --joint JointDecoderConfig --joint.vae assets/mini/vae
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rebus.data.emoji import EmojiPack
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.supervision.supervision import SupervisionConfig
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.loop import launch
from rebus.train.recipes.all import presets as recipe_presets
from rebus.train.tokenizer_stage import TokenizerStage, TokenizerStageConfig


def mini() -> TokenizerStageConfig:
    """The shipped tokenizer: 64 codes on a grid, one or two cores, 28 minutes."""
    return TokenizerStageConfig(
        run=RunConfig(output=Path("runs/tokenizer"), steps=7000, batch_size=16, compile=True, validate_every=1000),
        optim=OptimConfig(lr=6e-4, warmup_steps=100, cooldown_fraction=0.7, weight_decay=0.02),
        tokenizer=ImageTokenizerConfig(
            encoder=VitEncoderConfig(dim=192, depth=3, num_heads=3),
            quantizer=VectorConfig(codebook_size=4096, dim=64, commitment=1.0),
            pixel_decoder=VitPixelDecoderConfig(dim=192, depth=4, num_heads=3),
        ),
    )


def mini_scalar() -> TokenizerStageConfig:
    """As mini, with rounded channels instead of a code book."""
    config = mini()
    return replace(config, tokenizer=replace(config.tokenizer, quantizer=FiniteScalarConfig()))


def mini_nested() -> TokenizerStageConfig:
    """As mini, with nested causal queries of which any prefix decodes."""
    config = mini()
    tokenizer = replace(config.tokenizer, layout=NestedQueriesConfig(num_heads=3))
    return replace(config, tokenizer=tokenizer, supervision=replace(config.supervision, region=0.0))


def tiny() -> TokenizerStageConfig:
    """A training of seconds, for tests."""
    return TokenizerStageConfig(
        run=RunConfig(output=Path("runs/tokenizer_tiny"), steps=60, batch_size=8, dtype="float32"),
        optim=OptimConfig(lr=3e-3, warmup_steps=5),
        tokenizer=ImageTokenizerConfig(
            encoder=VitEncoderConfig(dim=32, depth=1, num_heads=2),
            pixel_decoder=VitPixelDecoderConfig(dim=32, depth=1, num_heads=2),
        ),
        supervision=SupervisionConfig(text_dim=64, text_depth=1),
        num_text_pieces=420,
        num_texts=500,
        num_validation=8,
    )


PRESETS = {"mini": mini, "mini_scalar": mini_scalar, "mini_nested": mini_nested, "tiny": tiny, **recipe_presets()}


def main(
    argv: list[str] | None = None, presets: Mapping[str, Callable[[], TokenizerStageConfig]] | None = None
) -> None:
    """Trains an image tokenizer as the command line says.

    Args:
        argv: the flags; those of this process by default.
        presets: to choose from, by name; the first is the default. Those of the project by default.
    """
    config = parse(presets or PRESETS, argv, description=__doc__)
    launch("tokenizer", lambda: TokenizerStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
