"""A decoder that reads a text beside the codes."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.model.code_condition import CrossAttentionConditionConfig, GridConditionConfig
from rebus.model.decoder import DecoderConfig, DiffusionDecoder
from rebus.model.flow import integrate, interpolate, velocity_target
from rebus.tokenizers.text_condition import TextConditionConfig
from rebus.tokenizers.tokens import Tokens
from rebus.train.decoder_text import learn_pieces, told_pieces

TEXT = TextConditionConfig(num_pieces=421, length=7, dim=16, depth=1, num_heads=2, in_encoder=False, drop_rate=0.3)
CONFIG = DecoderConfig(latent_channels=3, latent_size=(8, 12), patch=4, dim=16, depth=2, num_heads=2, text=TEXT)
TEXTS = ["a cat", "two dogs on the left", "a cat"]


def built(layout, text_tokenizer, condition=CONFIG.condition, spread=0.2):
    torch.manual_seed(0)
    decoder = replace(CONFIG, condition=condition).build(layout, "cafe")
    decoder.text.pieces = text_tokenizer
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return decoder.eval()


@pytest.fixture(scope="module")
def decoder(layout, text_tokenizer):
    return built(layout, text_tokenizer)


@pytest.fixture(scope="module")
def tokens(layout):
    return Tokens(torch.arange(6).repeat(3, 1)[..., None].repeat(1, 1, 2), torch.full((3,), 6), layout)


@pytest.fixture(scope="module")
def noise():
    return torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("condition", [GridConditionConfig(), CrossAttentionConditionConfig()])
def test_a_text_and_the_order_of_its_words_reach_the_picture(condition, layout, text_tokenizer, tokens, noise):
    decoder = built(layout, text_tokenizer, condition)
    told = decoder.render_latents(tokens, noise, text=TEXTS, steps=2)
    for other in ([TEXTS[0], TEXTS[1], ""], [TEXTS[0], TEXTS[1], "cat a"]):
        painted = decoder.render_latents(tokens, noise, text=other, steps=2)
        torch.testing.assert_close(painted[:2], told[:2], atol=1e-5, rtol=0)
        assert not torch.allclose(painted[2], told[2], atol=1e-4)
    for row in range(3):
        alone = decoder.render_latents(tokens.row(row), noise[row : row + 1], text=TEXTS[row : row + 1], steps=2)
        torch.testing.assert_close(alone[0], told[row], atol=1e-5, rtol=0)


def test_no_text_is_an_empty_one(decoder, tokens, noise):
    empty = decoder.render_latents(tokens, noise, text=["", "", ""], steps=1)
    assert torch.equal(decoder.render_latents(tokens, noise, steps=1), empty)
    time, text = torch.full((3,), 0.5), decoder.text_ids(None, 3)
    assert torch.equal(decoder(noise, time, tokens.ids), decoder(noise, time, tokens.ids, text=text))


def test_guidance_goes_from_the_text_alone_to_codes_and_text(decoder, tokens, noise):
    text, missing = decoder.text_ids(TEXTS, 3), torch.full_like(tokens.ids, -1)

    def velocity(state, time):
        without = decoder(state, time, missing, text=text)
        return without + 2.5 * (decoder(state, time, tokens.ids, text=text) - without)

    with torch.no_grad():
        expected = integrate(velocity, noise, 2)
    painted = decoder.render_latents(tokens, noise, text=TEXTS, steps=2, guidance=2.5)
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=0)


def test_a_saved_decoder_reads_the_same_words(decoder, tokens, noise, tmp_path):
    decoder.save(tmp_path)
    loaded = DiffusionDecoder.load(tmp_path)
    assert loaded.config == CONFIG
    assert torch.equal(loaded.text_ids(TEXTS, 3), decoder.text_ids(TEXTS, 3))
    loaded.save(tmp_path / "again")
    for file in ("model.safetensors", "tokenizer.model"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_texts_that_do_not_fit_are_refused(decoder, tokens, noise):
    with pytest.raises(ValueError, match="text must be one for each of 3 pictures, got 2"):
        decoder.render_latents(tokens, noise, text=TEXTS[:2])
    with pytest.raises(ValueError, match="text.in_encoder must be False for a decoder"):
        DecoderConfig(text=TextConditionConfig())


@pytest.mark.slow
def test_it_learns_what_only_the_text_says(layout, text_tokenizer):
    decoder = built(layout, text_tokenizer, spread=0.0)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    text, swapped = decoder.text_ids(["a cat", "a dog"] * 8, 16), decoder.text_ids(["a dog", "a cat"] * 8, 16)
    ids, time = torch.full((16, 6, 2), -1), torch.full((16,), 0.9)
    clean = torch.tensor([3.0, -3.0]).repeat(8)[:, None, None, None].expand(-1, 3, 8, 12)

    def error(told):
        noise = torch.randn(clean.shape)
        velocity = decoder(interpolate(clean, noise, time), time, ids, text=told)
        return F.mse_loss(velocity, velocity_target(clean, noise))

    for _ in range(40):
        optimizer.zero_grad()
        error(text).backward()
        optimizer.step()
    assert error(swapped) > 2.5 * error(text)


@pytest.mark.slow
def test_captions_are_told_and_left_out_as_often_as_asked():
    pack = EmojiPack.open()
    sampler = SceneSampler(pack, mini_concepts(pack), "train")
    text = replace(TEXT, length=40).build(16, 16)
    learn_pieces(text, sampler, 400)
    scenes = [sampler.scene(random.Random(row)) for row in range(100)]
    pieces = told_pieces(text, scenes, sampler, [str(row) for row in range(100)])
    left_out = (pieces == text.pad).all(dim=1)
    assert 20 <= left_out.sum() <= 40
    read = [text.pieces.decode([piece for piece in row if piece != text.pad]) for row in pieces[~left_out].tolist()]
    named = [scene.background in words for scene, words in zip(
        [scene for scene, empty in zip(scenes, left_out, strict=True) if not empty], read, strict=True)]  # fmt: skip
    assert sum(named) > 0.5 * len(named)
    assert torch.equal(told_pieces(text, scenes[7:9], sampler, ["7", "8"]), pieces[7:9])
