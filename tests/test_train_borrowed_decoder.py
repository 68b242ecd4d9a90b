from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.model.borrowed_decoders.lora import BaseLoraConfig
from rebus.model.borrowed_decoders.pipeline import open_pipeline
from rebus.train.borrowed_decoder import PRESETS, BorrowedDecoderStage
from rebus.train.config import parse
from rebus.train.imperfect_codes import ImperfectCodesConfig
from rebus.train.loop import train
from rebus.train.runtime import recompute_activations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers, in torch
]


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


def config_of(name, bases, square_tokenizer, **run):
    config = PRESETS[name]()
    short = {"batch_size": 4, "dtype": "float32", "device": "cpu", "ema": None, "accumulation": 1}
    return replace(
        config,
        run=replace(config.run, **short, **run),
        optim=replace(config.optim, lr=1e-2, warmup_steps=2),
        base=bases(name).folder,
        image_tokenizer=square_tokenizer,
        family=bases(name).family,
        base_dtype="float32",
        num_validation=4,
    )


def test_the_adapter_alone_learns_and_a_pipeline_comes_out(pack, bases, square_tokenizer, tmp_path):
    config = config_of("sd15", bases, square_tokenizer, output=tmp_path, steps=3)
    stage = BorrowedDecoderStage(config, pack)
    before = {name: value.clone() for name, value in stage.decoder.state_dict().items()}
    assert train(stage, config.run, config.optim, config)
    moved = {name for name, value in stage.decoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("adapter.")}
    assert set(stage.validate()) == {"mse", "mse_without_codes"}
    assert (tmp_path / "samples" / "painted.png").is_file()
    pipeline = open_pipeline(tmp_path / "export", tokenizer_hash=stage.tokenizer.hash)
    for name, value in stage.decoder.adapter.state_dict().items():
        assert torch.equal(pipeline.adapter.state_dict()[name], value)


def test_ranks_share_the_batch_of_one_process(pack, bases, square_tokenizer, tmp_path):
    stage = BorrowedDecoderStage(config_of("sd15", bases, square_tokenizer, output=tmp_path), pack)
    whole = stage.batch(3, 0, 1)
    for rank in range(2):
        part = stage.batch(3, rank, 2)
        for name in ("noise", "timesteps", "ids"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::2])
        torch.testing.assert_close(part.latents, whole.latents[rank::2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, BaseLoraConfig(rank=4)])
@pytest.mark.parametrize("name", PRESETS)
def test_every_family_learns_a_handful_of_pictures(name, lora, pack, bases, square_tokenizer, tmp_path):
    config = config_of(name, bases, square_tokenizer, output=tmp_path, steps=1)
    config = replace(config, lora=lora, codes=ImperfectCodesConfig(dropped=0.0, cut=0.0, perturbed=0.0))
    stage = BorrowedDecoderStage(config, pack)
    batch = stage.batch(0, 0, 1)
    trained = {name: one for name, one in stage.decoder.named_parameters() if one.requires_grad}
    assert all(name.startswith("adapter.") or "lora_" in name for name in trained)
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss, _ = stage.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    with torch.no_grad():  # and it is the codes that tell it more
        others, _ = stage.loss(replace(batch, ids=batch.ids.roll(1, dims=0)))
    assert losses[-1] < 0.98 * others


@pytest.mark.parametrize("name", PRESETS)
def test_what_the_base_learned_is_in_its_matrices_afterwards(name, pack, bases, square_tokenizer, tmp_path):
    config = replace(config_of(name, bases, square_tokenizer, output=tmp_path, steps=2), lora=BaseLoraConfig(rank=2))
    stage = BorrowedDecoderStage(config, pack)
    batch = stage.batch(0, 0, 1)
    plain = BorrowedDecoderStage(replace(config, lora=None), pack).loss(batch)[0]
    torch.testing.assert_close(stage.loss(batch)[0], plain)  # fresh additions change nothing
    with torch.no_grad():
        for parameter in stage.decoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    stage.export(tmp_path / "export")
    pipeline = open_pipeline(tmp_path / "export")
    assert not [key for key in pipeline.base.state_dict() if "lora" in key]
    decoder = type(stage.decoder)(pipeline.adapter, pipeline.base)
    args = (batch.noise, batch.timesteps, batch.ids)
    with torch.no_grad():
        torch.testing.assert_close(decoder(*args), stage.decoder(*args), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_recomputed_activations_give_the_same_gradients(name, pack, bases, square_tokenizer, tmp_path):
    config = replace(config_of(name, bases, square_tokenizer, output=tmp_path, steps=1), lora=BaseLoraConfig(rank=2))
    gradients = []
    for recomputed in (False, True):
        stage = BorrowedDecoderStage(config, pack)
        if recomputed:
            recompute_activations(stage.model)
        stage.loss(stage.batch(0, 0, 1))[0].backward()
        assert stage.decoder.base.is_gradient_checkpointing == recomputed
        gradients.append({name: one.grad for name, one in stage.decoder.named_parameters() if one.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_a_base_in_half_precision_keeps_what_learns_whole(name, pack, bases, square_tokenizer, tmp_path):
    config = config_of(name, bases, square_tokenizer, output=tmp_path, steps=1)
    stage = BorrowedDecoderStage(replace(config, base_dtype="bfloat16", lora=BaseLoraConfig(rank=2)), pack)
    dtypes = {one.dtype for one in stage.decoder.base.parameters() if not one.requires_grad}
    assert dtypes == {torch.bfloat16}
    loss, _ = stage.loss(stage.batch(0, 0, 1))
    loss.backward()
    learned = [(key, one) for key, one in stage.decoder.named_parameters() if one.requires_grad]
    assert all(one.dtype == torch.float32 for _, one in learned)
    assert all(torch.isfinite(one.grad).all() for _, one in learned if one.grad is not None)
    assert any("lora_B" in key and one.grad.any() for key, one in learned)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_through_the_command_line(preset, square_tokenizer):
    config = parse(PRESETS, ["--preset", preset, "--base", "here", "--family.size_px", "[256, 256]"])
    expected = PRESETS[preset]()
    assert config == replace(expected, base=Path("here"), family=replace(expected.family, size_px=(256, 256)))
