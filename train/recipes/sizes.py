"""What the recipes share: two sizes, and at mini size the same budget, and the same parts where a recipe is mute."""

from pathlib import Path
from typing import Literal

from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.supervision.supervision import SupervisionConfig
from rebus.train.config import OptimConfig, RunConfig
from rebus.train.tokenizer_stage import TokenizerStageConfig

Size = Literal["mini", "published"]
"""``published``: builds here on the meta device, and trains on a cluster. ``mini``: trains here on emoji scenes."""

MINI_ENCODER = VitEncoderConfig(dim=192, depth=3, num_heads=3)
MINI_PATCHES = VitEncoderConfig(dim=192, depth=1, num_heads=3)
"""For layouts that have blocks of their own."""
MINI_DECODER = VitPixelDecoderConfig(dim=192, depth=4, num_heads=3)
MINI_CODES = VectorConfig(codebook_size=1024, dim=32, commitment=1.0)


def mini(tokenizer: ImageTokenizerConfig, supervision: SupervisionConfig | None = None) -> TokenizerStageConfig:
    """Returns a training on emoji scenes: the same for every recipe but for the tokenizer and what it is taught."""
    return TokenizerStageConfig(
        run=RunConfig(output=Path("runs/tokenizer"), steps=2000, batch_size=16, validate_every=500),
        optim=OptimConfig(lr=6e-4, warmup_steps=100, cooldown_fraction=0.7, weight_decay=0.02),
        tokenizer=tokenizer,
        supervision=supervision or SupervisionConfig(region=0.0),
    )


def pixels_only() -> SupervisionConfig:
    """Returns a supervision without words."""
    return SupervisionConfig(region=0.0, contrastive=0.0, caption=0.0)


def published(
    tokenizer: ImageTokenizerConfig,
    supervision: SupervisionConfig | None = None,
    *,
    lr: float = 1e-4,
    batch_size: int = 256,
    steps: int = 500_000,
) -> TokenizerStageConfig:
    """Returns a training at published size; what a recipe leaves open is that of most of them."""
    return TokenizerStageConfig(
        run=RunConfig(output=Path("runs/tokenizer"), steps=steps, batch_size=batch_size),
        optim=OptimConfig(lr=lr, warmup_steps=5000, cooldown_fraction=0.1, weight_decay=0.05),
        tokenizer=tokenizer,
        supervision=supervision or SupervisionConfig(region=0.0),
    )
