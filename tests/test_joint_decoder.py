"""A diffusion decoder that learns beside the image tokenizer."""

from dataclasses import replace

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.model.code_condition import GridConditionConfig
from rebus.model.command_line import SHIPPED_MODEL
from rebus.model.decoder import DecoderConfig, DiffusionDecoder
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.vae import load_vae
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.layouts.multi_scale import MultiScaleConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.product import ProductConfig
from rebus.tokenizers.quantizers.residual import ResidualConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.supervision.supervision import SupervisionConfig
from rebus.tokenizers.tokens import Tokens
from rebus.train.config import RunConfig
from rebus.train.joint_decoder import JointDecoderConfig
from rebus.train.loop import train
from rebus.train.tokenizer import PRESETS
from rebus.train.tokenizer_stage import TokenizerStage

CODES = {
    "one": FiniteScalarConfig(levels=(5, 3)),
    "side by side": ProductConfig(quantizer=FiniteScalarConfig(levels=(3, 4)), groups=2),
    "summed": ResidualConfig(quantizer=VectorConfig(codebook_size=7, dim=4), depth=3),
}
SMALL = ImageTokenizerConfig(
    image_size_px=24,
    encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
    pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
)
DECODER = DecoderConfig(latent_channels=3, latent_size=(12, 12), patch=4, dim=20, depth=1, num_heads=2)


def built(exports, codes="one", **changes):
    torch.manual_seed(0)
    tokenizer = replace(SMALL, quantizer=CODES[codes]).build()
    term = JointDecoderConfig(vae=exports / "vae", decoder=DECODER, **changes).build(tokenizer)
    for parameter in term.decoder.parameters():
        if not parameter.any():  # fresh, a decoder gives no velocity
            torch.nn.init.normal_(parameter, std=0.3)
    return tokenizer, term


def shown(tokenizer, inputs):
    """What a term sees of pictures, as the tokenizer codes them."""
    taught = inputs(side=24)
    return replace(taught, coded=tokenizer.quantize(taught.images))


@pytest.mark.parametrize("codes", CODES)
def test_the_saved_decoder_reads_from_ids_what_the_joint_one_reads_from_features(codes, exports, inputs, tmp_path):
    tokenizer, term = built(exports, codes)
    tokenizer.eval()
    taught = shown(tokenizer, inputs)
    held = torch.arange(9).expand(6, 9) < torch.tensor([0, 1, 5, 9, 9, 9])[:, None]
    noisy, time = torch.randn(6, 3, 12, 12), torch.rand(6)
    expected = term.decoder.velocity(noisy, time, term.seen(taught, held), held)
    term.trained(tokenizer).save(tmp_path)
    loaded = DiffusionDecoder.load(tmp_path, tokenizer_hash=tokenizer.hash)
    ids = torch.where(held[..., None], taught.coded.ids, -1)
    torch.testing.assert_close(loaded(noisy, time, ids), expected, rtol=0.05, atol=0.05)  # saved in bfloat16
    torch.testing.assert_close(term.decoder(noisy, time, ids), expected, rtol=1e-4, atol=1e-5)


def test_the_error_reaches_the_encoder_and_follows_from_the_seeds(exports, inputs):
    tokenizer, term = built(exports, weight=0.5)
    first, again = (term(shown(tokenizer, inputs))["flow"] for _ in range(2))
    first.backward()
    assert torch.equal(first, again)
    assert tokenizer.encoder.embed.weight.grad.any() and term.decoder.embed_patches.weight.grad.any()
    assert all(parameter.grad is None for parameter in term.vae.parameters())
    other = replace(shown(tokenizer, inputs), seeds=torch.arange(6) + 10)
    assert not torch.equal(term(other)["flow"], first)
    whole = built(exports, weight=1.0)[1](shown(tokenizer, inputs))["flow"]
    torch.testing.assert_close(whole, 2 * first)


def test_without_codes_no_gradient_reaches_the_encoder(exports, inputs):
    tokenizer, term = built(exports, dropped=1.0)
    term(shown(tokenizer, inputs))["flow"].backward()
    assert not tokenizer.encoder.embed.weight.grad.any() and term.decoder.embed_codes.streams[0].weight.grad.any()


def test_codes_that_change_with_their_place_are_refused(exports):
    tokenizer = replace(
        SMALL, image_size_px=32, layout=MultiScaleConfig(scales=(1, 2, 4), num_phi=0), quantizer=CODES["one"]
    ).build()
    with pytest.raises(
        ValueError, match="joint must be none for codes that mean .* got a MultiScaleConfig and a Finite"
    ):
        JointDecoderConfig(vae=exports / "vae", decoder=DECODER).build(tokenizer)
    with pytest.raises(ValueError, match="joint.weight must be above 0, got 0"):
        JointDecoderConfig(weight=0.0)
    with pytest.raises(ValueError, match=r"joint.dropped must be in \[0, 1\], got 1.5"):
        JointDecoderConfig(dropped=1.5)
    with pytest.raises(ValueError, match="joint.decoder.condition.per_patch must be false, got true"):
        JointDecoderConfig(decoder=replace(DECODER, condition=GridConditionConfig(per_patch=True)))


@pytest.mark.slow  # a minute
def test_the_velocity_alone_teaches_codes_what_to_paint(tmp_path):
    pack = EmojiPack.open()
    config = replace(
        PRESETS["tiny"](),
        run=RunConfig(output=tmp_path, steps=200, batch_size=8, dtype="float32"),
        tokenizer=ImageTokenizerConfig(
            encoder=VitEncoderConfig(dim=64, depth=1, num_heads=2),
            quantizer=FiniteScalarConfig(levels=(5, 5, 3, 3)),
            pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
        ),
        supervision=SupervisionConfig(pixel_l1=0.0, pixel_l2=0.0, contrastive=0.0, caption=0.0, region=0.0),
        joint=JointDecoderConfig(vae=SHIPPED_MODEL / "vae", decoder=DecoderConfig(dim=96, depth=2, num_heads=2)),
    )
    stage = TokenizerStage(config, pack)
    assert train(stage, config.run, config.optim, config)
    tokenizer = ImageTokenizer.load(tmp_path / "export")
    decoder = DiffusionDecoder.load(tmp_path / "export" / "decoder", tokenizer_hash=tokenizer.hash)
    images = pictures_of(scene_rows(stage.held_out_scenes, 32, seed=0, step=0), pack) / 255
    painter, tokens = DecoderPipeline(decoder, load_vae(SHIPPED_MODEL / "vae")), tokenizer.encode(images)
    own, others = painter.render(tokens), painter.render(Tokens.cat([tokens.row(row - 1) for row in range(32)]))
    own_error, others_error = ((painted - images).square().mean() for painted in (own, others))
    assert own_error < 0.5 * others_error
