from dataclasses import replace

import pytest
import torch
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.generate import main
from rebus.model.decoder import DecoderConfig, DiffusionDecoder
from rebus.model.vae import VaeConfig, fit_scale
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.train import decoder as decoder_stage
from rebus.train.assemble import AssembleConfig, assemble
from rebus.train.distill_decoder import PRESETS, DistillConfig, DistillStage, student_of, tiny
from rebus.train.latent_cache import LatentCacheConfig
from rebus.train.loop import train


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Folder of an untrained auto-encoder, image tokenizer and decoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("frozen")
    vae = VaeConfig(fold_px=4, block_out_channels=(8, 8)).build().eval()
    fit_scale(vae, torch.rand(4, 3, 128, 128))
    vae.save_pretrained(folder / "vae")
    tokenizer = ImageTokenizerConfig(
        encoder=VitEncoderConfig(patch_px=32, dim=32, depth=1, num_heads=2),
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    ).build()
    tokenizer.save(folder / "image_tokenizer")
    config = DecoderConfig(latent_size=(16, 16), dim=32, depth=1, num_heads=2)
    decoder = config.build(tokenizer.layout, ImageTokenizer.load(folder / "image_tokenizer").hash)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    decoder.save(folder / "decoder")
    return folder


def config_of(frozen, preset="tiny", **run) -> DistillConfig:
    config = PRESETS[preset]()
    cache = LatentCacheConfig(file=frozen / "latents.safetensors", num_scenes=12)
    parts = {name: frozen / name for name in ("decoder", "vae", "image_tokenizer")}
    return replace(config, run=replace(config.run, **run), cache=cache, num_validation=8, **parts)


@pytest.fixture(scope="module")
def stage(pack, frozen):
    return DistillStage(config_of(frozen), pack)


def test_a_fresh_student_paints_as_its_teacher(stage):
    batch = stage.batch(0, 0, 1)
    for span in (None, 0.25 * batch.time):
        velocity = stage.student(batch.noise, batch.time, batch.ids, span)
        assert torch.equal(velocity, stage.teacher(batch.noise, batch.time, batch.ids))
    assert stage.student.config.flow_map and not stage.teacher.config.flow_map
    with pytest.raises(ValueError, match="decoder must be one that gives the velocity at a time, got a flow map"):
        student_of(stage.student)
    shifted = replace(stage.teacher.config, time_shift=2.0).build(stage.teacher.layout, stage.tokenizer.hash)
    with pytest.raises(ValueError, match="decoder must paint one size, its times not shifted, and read no text, got"):
        student_of(shifted)


def test_ranks_share_the_batch_of_one_process(stage):
    whole = stage.batch(3, 0, 1)
    for rank in range(2):
        part = stage.batch(3, rank, 2)
        for name in ("latents", "images", "noise", "time", "ids", "parts"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::2])
    assert len(whole.noise.unique(dim=0)) == 8 and not torch.equal(whole.parts, stage.batch(4, 0, 1).parts)
    assert (whole.parts >= 0).all() and (whole.parts < torch.tensor([1, 2, 4])).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_a_loss_of_which_each_term_teaches(preset, pack, frozen):
    stage = DistillStage(config_of(frozen, preset, batch_size=4), pack)
    loss, terms = stage.loss(stage.batch(0, 0, 1))
    weights = stage.config.match_weight, stage.config.pixel_weight
    weighted = terms["distilled"] + weights[0] * terms["matched"] + weights[1] * terms["pixels"]
    torch.testing.assert_close(loss, weighted)
    for value in terms.values():
        gradient = torch.autograd.grad(value, stage.student.to_velocity.weight, retain_graph=True)[0]
        assert value > 0 and gradient.any()


def test_pictures_without_their_codes_are_not_held_against_the_true_ones(stage):
    batch = stage.batch(0, 0, 1)
    _, terms = stage.loss(replace(batch, ids=torch.full_like(batch.ids, -1)))
    assert terms["pixels"] == 0 and terms["distilled"] > 0


def test_steps_of_the_teacher_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="teacher_steps must be a multiple of 4, got 6"):
        replace(tiny(), teacher_steps=6)


def test_generate_draws_with_a_distilled_decoder_in_any_number_of_steps(exports, tmp_path):
    student = student_of(DiffusionDecoder.load(exports / "decoder"))
    torch.nn.init.normal_(student.embed_span.embed.mlp[-1].weight, std=0.1)
    student.save(tmp_path / "distilled")
    others = {name: exports / name for name in ("language_model", "image_tokenizer", "vae")}
    assemble(AssembleConfig(decoder=tmp_path / "distilled", output=tmp_path / "model", **others))
    pictures = set()
    for steps in ("1", "2", "4", "25"):
        file = tmp_path / f"{steps}.png"
        main(["--prompt", "a cat", "--model", str(tmp_path / "model"), "--steps", steps, "--output", str(file)])
        with Image.open(file) as image:
            pictures.add(image.tobytes())
    assert len(pictures) == 4


@pytest.mark.slow
def test_a_distilled_decoder_comes_closer_to_many_steps_of_its_teacher_than_the_teacher_in_few(pack, frozen, tmp_path):
    teaching = decoder_stage.tiny()
    parts = {name: frozen / name for name in ("vae", "image_tokenizer")}
    run = replace(teaching.run, steps=150, output=tmp_path / "teacher")
    teaching = replace(teaching, run=run, optim=replace(teaching.optim, lr=3e-3), **parts)
    assert train(decoder_stage.DecoderStage(teaching, pack), teaching.run, teaching.optim, teaching)
    config = replace(config_of(frozen, output=tmp_path / "run", steps=100), decoder=tmp_path / "teacher" / "export")
    # The teacher alone teaches: true pictures lead away from one that has learned so little.
    config = replace(config, match_weight=0.0, pixel_weight=0.0)
    stage = DistillStage(config, pack)
    before = stage.validate()  # that of the teacher in as few steps
    assert train(stage, config.run, config.optim, config)
    after = stage.validate()
    assert (tmp_path / "run" / "samples" / "distilled.png").is_file()
    exported = DiffusionDecoder.load(tmp_path / "run" / "export", tokenizer_hash=stage.tokenizer.hash)
    assert exported.config == stage.student.config
    for steps in (1, 2):
        assert after[f"from_teacher_{steps}"] < 0.8 * before[f"from_teacher_{steps}"]
