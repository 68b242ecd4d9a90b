from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

from rebus.data.emoji import EmojiPack
from rebus.model.borrowed_decoders.pipeline import open_pipeline
from rebus.model.borrowed_decoders.unclip_parts import empty_prompt, read_encoder
from rebus.train.config import parse
from rebus.train.image_embedding import PRESETS, ImageEmbeddingStage
from rebus.train.imperfect_codes import ImperfectCodesConfig
from rebus.train.loop import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of diffusers, in torch
]


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture(scope="module")
def base(bases):
    """A tiny pipeline of Stable unCLIP, with all that stands beside its UNet."""
    made = bases("unclip")
    folder, small = made.folder, {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**small, **heads, image_size=14, patch_size=7, projection_dim=6)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**small, **heads, vocab_size=5, max_position_embeddings=4)
    ).save_pretrained(folder / "text_encoder")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "!": 2, "a</w>": 3, "b</w>": 4}
    transformers.CLIPTokenizer(vocab=words, merges=[], pad_token="!").save_pretrained(folder / "tokenizer")
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 14}).save_pretrained(folder / "feature_extractor")
    normalizer = diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(6)
    with torch.no_grad():
        normalizer.mean.normal_()
    normalizer.save_pretrained(folder / "image_normalizer")
    noise = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    noise.save_pretrained(folder / "image_noising_scheduler")
    return made


def config_of(base, square_tokenizer, **run):
    config = PRESETS["unclip"]()
    short = {"batch_size": 4, "dtype": "float32", "device": "cpu", "ema": None}
    return replace(
        config,
        run=replace(config.run, **short, **run),
        optim=replace(config.optim, lr=1e-2, warmup_steps=2),
        base=base.folder,
        image_tokenizer=square_tokenizer,
        family=base.family,
        base_dtype="float32",
        num_validation=4,
    )


def test_embeddings_are_learned_and_a_pipeline_comes_out(pack, base, square_tokenizer, tmp_path):
    config = config_of(base, square_tokenizer, output=tmp_path, steps=60)
    stage = ImageEmbeddingStage(config, pack)
    before = stage.validate()
    assert train(stage, config.run, config.optim, config)
    after = stage.validate()
    assert after["mse"] < 0.5 * before["mse"] and after["cosine"] > before["cosine"]
    assert (tmp_path / "samples" / "painted.png").is_file()
    pipeline = open_pipeline(tmp_path / "export", tokenizer_hash=stage.tokenizer.hash)
    for name, value in stage.adapter.state_dict().items():
        assert torch.equal(pipeline.adapter.state_dict()[name], value)
    plain = diffusers.UNet2DConditionModel.from_pretrained(base.folder / "unet").state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in pipeline.base.state_dict().items())


def test_a_handful_of_pictures_is_told_apart(pack, base, square_tokenizer, tmp_path):
    config = config_of(base, square_tokenizer, output=tmp_path, steps=1)
    perfect = ImperfectCodesConfig(dropped=0.0, cut=0.0, perturbed=0.0)
    stage = ImageEmbeddingStage(replace(config, codes=perfect), pack)
    batch = stage.batch(0, 0, 1)
    optimizer = torch.optim.Adam([one for one in stage.model.parameters() if one.requires_grad], lr=1e-2)
    for _ in range(150):
        loss, _ = stage.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    others, _ = stage.loss(replace(batch, ids=batch.ids.roll(1, dims=0)))
    assert stage.loss(batch)[0] < 0.5 * others


def test_the_numbers_beside_the_unet_are_taken_over(pack, base, square_tokenizer, tmp_path):
    stage = ImageEmbeddingStage(config_of(base, square_tokenizer, output=tmp_path, steps=1), pack)
    normalizer = diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer.from_pretrained(
        base.folder / "image_normalizer"
    )
    noise = diffusers.DDPMScheduler.from_pretrained(base.folder / "image_noising_scheduler")
    assert torch.equal(stage.head.mean, normalizer.mean[0]) and torch.equal(stage.head.std, normalizer.std[0])
    assert stage.head.kept == noise.alphas_cumprod[0]
    text = transformers.CLIPTextModel.from_pretrained(base.folder / "text_encoder").eval()
    with torch.no_grad():
        expected = text(torch.tensor([[0, 1, 2, 2]])).last_hidden_state[0]
    assert torch.equal(empty_prompt(base.folder, 4), expected)
    assert torch.equal(stage.head.empty_prompt, expected)


def test_a_picture_is_embedded_as_by_its_own_processor(base):
    encoder = read_encoder(base.folder)
    image = torch.randint(256, (1, 3, 14, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor = transformers.CLIPImageProcessorPil.from_pretrained(
        base.folder / "feature_extractor", do_resize=False, do_center_crop=False
    )
    pixels = processor(images=list(image.numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = encoder.model(pixels).image_embeds
    torch.testing.assert_close(encoder(image / 255), expected, atol=1e-5, rtol=1e-4)


def test_a_pipeline_that_lacks_parts_is_refused(bases):
    with pytest.raises(ValueError, match="must be a pipeline of Stable unCLIP, got one without image_encoder, "):
        read_encoder(bases("sd15").folder)


def test_the_preset_comes_through_the_command_line():
    assert parse(PRESETS, ["--base", "here"]) == replace(PRESETS["unclip"](), base=Path("here"))
