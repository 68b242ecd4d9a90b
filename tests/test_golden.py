"""The first five losses of every stage's tiny preset: a change of numbers has to be meant.

After a change that is meant: `pytest tests/test_golden.py --regolden`, and say so in the commit.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.model.vae import VaeConfig, fit_scale
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.train import decoder, detector, tokenizer, vae
from rebus.train.updates import PlainUpdater

GOLDEN = Path(__file__).parent / "golden.json"


def decoder_config(folder: Path) -> decoder.DecoderStageConfig:
    """The tiny preset over an untrained image tokenizer and auto-encoder."""
    torch.manual_seed(0)
    auto_encoder = VaeConfig(fold_px=4, block_out_channels=(8, 8)).build().eval()
    fit_scale(auto_encoder, torch.rand(4, 3, 128, 128))
    auto_encoder.save_pretrained(folder / "vae")
    ImageTokenizerConfig(
        encoder=VitEncoderConfig(patch_px=32, dim=32, depth=1, num_heads=2),
        quantizer=FiniteScalarConfig(),
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    ).build().save(folder / "tokenizer")
    return replace(decoder.tiny(), vae=folder / "vae", image_tokenizer=folder / "tokenizer")


STAGES = {
    "vae": lambda folder, pack: (vae.VaeStage(vae.tiny(), pack), vae.tiny()),
    "tokenizer": lambda folder, pack: (tokenizer.TokenizerStage(tokenizer.tiny(), pack), tokenizer.tiny()),
    "detector": lambda folder, pack: (detector.DetectorStage(detector.tiny(), pack), detector.tiny()),
    "decoder": lambda folder, pack: (
        decoder.DecoderStage(config := decoder_config(folder), pack),
        config,
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_first_losses_are_the_golden_ones(name, tmp_path, request):
    torch.manual_seed(0)
    stage, config = STAGES[name](tmp_path, EmojiPack.open())
    stage.model.train()
    updater = PlainUpdater(stage.model, stage.loss, config.optim)
    losses = [updater.update([stage.batch(step, 0, 1)], config.optim.lr)["loss"].item() for step in range(5)]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if request.config.getoption("--regolden"):
        GOLDEN.write_text(json.dumps(golden | {name: losses}, indent=2) + "\n")
        return
    # Processors round differently in the last digits, and five steps let that grow.
    assert losses == pytest.approx(golden[name], rel=5e-3)
