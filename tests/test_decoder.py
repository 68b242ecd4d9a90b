import json
from dataclasses import replace

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler

from rebus.model.code_condition import Conditioned, GridConditionConfig, SequenceConditionConfig
from rebus.model.decoder import DecoderConfig, DiffusionDecoder
from rebus.model.decoder_guidance import AdaptiveProjectedGuidance, guide
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.flow import integrate
from rebus.model.vae import VaeConfig
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

TINY = DecoderConfig(latent_channels=3, latent_size=(8, 12), patch=4, dim=16, depth=2, num_heads=2)
SEQUENCE = CodeLayout("sequence", 5, (Stream("only", 13),), prefix_decodable=True)
IN_CONTEXT = DecoderConfig(
    latent_channels=3, latent_size=(8, 12), patch=4, dim=16, depth=2, num_heads=2, condition=SequenceConditionConfig()
)


def lively(config, layout):
    """A decoder whose zero-initialised parts have been moved, so that all inputs reach its output."""
    torch.manual_seed(0)
    decoder = config.build(layout, "cafe")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder.eval()


@pytest.fixture(scope="module")
def decoder(layout):
    return lively(TINY, layout)


@pytest.fixture(scope="module")
def tokens(layout):
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randint(s.size, (3, 6), generator=generator) for s in layout.streams], dim=-1)
    return Tokens(ids, torch.full((3,), 6), layout)


@pytest.fixture(scope="module")
def pipeline(decoder):
    torch.manual_seed(0)
    vae = VaeConfig(block_out_channels=(8, 8), latent_channels=3, norm_num_groups=4).build().eval()
    return DecoderPipeline(decoder, vae)


@pytest.fixture(scope="module")
def noise():
    return torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(2))


def test_a_fresh_decoder_gives_no_velocity(layout, tokens, noise):
    assert not TINY.build(layout, "cafe")(noise, torch.full((3,), 0.5), tokens.ids).any()


def test_every_code_the_time_and_the_noise_matter(decoder, tokens, noise):
    time = torch.full((3,), 0.5)
    plain = decoder(noise, time, tokens.ids)
    assert plain.shape == noise.shape
    for position in range(6):
        for stream in range(2):
            ids = tokens.ids.clone()
            ids[:, position, stream] = -1
            assert not torch.allclose(decoder(noise, time, ids), plain, atol=1e-4)
    assert not torch.allclose(decoder(noise, time + 0.01, tokens.ids), plain, atol=1e-5)
    assert not torch.allclose(decoder(noise + 0.01, time, tokens.ids), plain, atol=1e-5)


def test_a_patch_of_latents_comes_back_to_its_place(layout, tokens):
    decoder = TINY.build(layout, "cafe")
    with torch.no_grad():  # without blocks and codes, and with inverse embeddings, the decoder is the identity
        decoder.blocks = torch.nn.ModuleList()
        decoder.embed_patches = torch.nn.Linear(48, 48, bias=False)
        decoder.embed_patches.weight.copy_(torch.eye(48))
        decoder.patch_positions = torch.nn.Parameter(torch.zeros(6, 48))
        decoder.condition.forward = lambda patches, codes, patch_grid: Conditioned(patches)
        decoder.norm = torch.nn.Identity()
        decoder.modulation.forward = lambda time: (torch.zeros(3, 1, 48), torch.zeros(3, 1, 48))
        decoder.to_velocity = torch.nn.Identity()
    noisy = torch.randn(3, 3, 8, 12)
    assert torch.equal(decoder(noisy, torch.full((3,), 0.5), tokens.ids), noisy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_times_in_half_precision_are_refused(dtype, decoder, tokens, noise):
    with pytest.raises(ValueError, match="time must be float32"):
        decoder(noise, torch.full((3,), 0.5, dtype=dtype), tokens.ids)


def test_autocast_keeps_close_times_apart(decoder):
    with torch.autocast("cpu", torch.bfloat16):
        features = decoder.embed_time(torch.tensor([0.9, 0.9005]))  # equal in bfloat16
    assert not torch.equal(features[0], features[1])


def test_a_prefix_renders_as_its_missing_codes(decoder, tokens, noise):
    ids = tokens.ids.clone()
    ids[:, 4:] = -1
    expected = integrate(lambda state, time: decoder(state, time, ids), noise, 3)
    painted = decoder.render_latents(tokens.prefix(4), noise, steps=3)
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(painted, decoder.render_latents(tokens, noise, steps=3), atol=1e-4)


def test_guidance_equals_two_passes(decoder, tokens, noise):
    missing = torch.full_like(tokens.ids, -1)

    def velocity(state, time):
        without = decoder(state, time, missing)
        return without + 2.5 * (decoder(state, time, tokens.ids) - without)

    with torch.no_grad():
        expected = integrate(velocity, noise, 4)
    painted = decoder.render_latents(tokens, noise, steps=4, guidance=2.5)
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=0)
    nearly_one = decoder.render_latents(tokens, noise, steps=4, guidance=1 + 1e-7)
    torch.testing.assert_close(nearly_one, decoder.render_latents(tokens, noise, steps=4), atol=1e-5, rtol=0)


def test_projected_guidance_and_heun_reach_the_picture(decoder, pipeline, tokens, noise):
    config = AdaptiveProjectedGuidance(scale=3.0, norm_threshold=0.5)
    missing, guided = torch.full_like(tokens.ids, -1), guide(config)

    def velocity(state, time):
        return guided(decoder(state, time, tokens.ids), decoder(state, time, missing))

    with torch.no_grad():
        expected = integrate(velocity, noise, 3, solver="heun")
    painted = decoder.render_latents(tokens, noise, steps=3, guidance=config, solver="heun")
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=0)
    plain = pipeline.render(tokens, steps=3)
    for settings in ({"guidance": config}, {"guidance": 3.0}, {"solver": "heun"}):
        assert not torch.allclose(pipeline.render(tokens, steps=3, **settings), plain, atol=1e-4)


def test_a_picture_is_the_same_alone_and_in_a_batch(pipeline, tokens):
    together = pipeline.render(tokens, steps=2, guidance=2.0, seed=[5, 6, 7])
    assert together.shape == (3, 3, 32, 48) and 0 <= together.min() and together.max() <= 1
    for row in range(3):
        alone = pipeline.render(tokens.row(row), steps=2, guidance=2.0, seed=5 + row)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_pictures_of_different_lengths_share_a_batch(pipeline, tokens):
    mixed = Tokens.cat([tokens.row(0).prefix(2), tokens.row(1)])
    torch.testing.assert_close(
        pipeline.render(mixed)[0], pipeline.render(tokens.row(0).prefix(2))[0], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_flow_map_goes_the_steps_of_the_scheduler_of_diffusers(steps, guidance, layout, tokens, noise):
    flow_map = lively(replace(TINY, flow_map=True), layout)
    scheduler, state = FlowMapEulerDiscreteScheduler(), noise
    scheduler.set_timesteps(steps)
    missing, span = torch.full_like(tokens.ids, -1), torch.full((3,), 1 / steps)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            time = (timestep / 1000).float().expand(3)
            without = flow_map(state, time, missing, span)
            velocity = without + guidance * (flow_map(state, time, tokens.ids, span) - without)
            state = scheduler.step(velocity, timestep, state, return_dict=False)[0]
    painted = flow_map.render_latents(tokens, noise, steps=steps, guidance=guidance)
    torch.testing.assert_close(painted, state, atol=1e-4, rtol=0)


def test_only_a_flow_map_heeds_how_far_a_step_goes(decoder, layout, tokens, noise):
    flow_map, time = lively(replace(TINY, flow_map=True), layout), torch.full((3,), 0.9)
    far, near = torch.full((3,), 0.5), torch.full((3,), 0.01)
    assert torch.equal(decoder(noise, time, tokens.ids, far), decoder(noise, time, tokens.ids))
    assert not torch.allclose(
        flow_map(noise, time, tokens.ids, far), flow_map(noise, time, tokens.ids, near), atol=1e-4
    )
    assert torch.equal(flow_map(noise, time, tokens.ids, 0 * far), flow_map(noise, time, tokens.ids))


def test_a_decoder_saved_before_there_were_flow_maps_is_none(decoder, tmp_path):
    decoder.save(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    del values["decoder"]["flow_map"]
    config.write_text(json.dumps(values))
    assert DiffusionDecoder.load(tmp_path).config == decoder.config


def test_codes_in_sequence_are_seen_in_order():
    decoder = lively(IN_CONTEXT, SEQUENCE)
    noisy, time, ids = torch.randn(1, 3, 8, 12), torch.full((1,), 0.5), torch.arange(5).reshape(1, 5, 1)
    plain = decoder(noisy, time, ids)
    assert plain.shape == noisy.shape
    assert not torch.allclose(decoder(noisy, time, ids.flip(1)), plain, atol=1e-4)


def test_a_saved_decoder_comes_back_the_same(decoder, tokens, noise, tmp_path):
    decoder.save(tmp_path)
    loaded = DiffusionDecoder.load(tmp_path, tokenizer_hash="cafe")
    assert (loaded.config, loaded.layout, loaded.tokenizer_hash) == (TINY, decoder.layout, "cafe")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, decoder.state_dict()[name].bfloat16().float())
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert loaded.render_latents(tokens, noise).isfinite().all()


def test_what_does_not_fit_is_refused(decoder, pipeline, tokens, noise, tmp_path):
    with pytest.raises(ValueError, match="must hold a saved decoder"):
        DiffusionDecoder.load(tmp_path)
    decoder.save(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_hash must be cafe, as in training, got beef"):
        DiffusionDecoder.load(tmp_path, tokenizer_hash="beef")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(ValueError, match="the weights must fit config.json, got missing: blocks.2.attention"):
        DiffusionDecoder.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors must hold the weights, got no such file"):
        DiffusionDecoder.load(tmp_path)
    other = Tokens(torch.zeros(1, 5, 1, dtype=torch.int64), torch.tensor([5]), SEQUENCE)
    with pytest.raises(ValueError, match="tokens must have the decoder's layout"):
        decoder.render_latents(other, noise)
    with pytest.raises(ValueError, match=r"length must lie in \[1, 6\], got 7"):
        pipeline.render(tokens.prefix(7))
    with pytest.raises(ValueError, match="ids must have at most 6 positions, got 7"):
        pipeline.render(Tokens(tokens.ids[:, [0, *range(6)]], tokens.lengths + 1, tokens.layout))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        pipeline.render(tokens, steps=0)
    with pytest.raises(ValueError, match="size must be one of 32 x 48 px, got 64 x 64"):
        pipeline.render(tokens, size=(64, 64))
    with pytest.raises(ValueError, match="guidance must be at least 0 and finite, got -1.0"):
        pipeline.render(tokens, guidance=-1.0)
    with pytest.raises(ValueError, match="text must be left out: the decoder reads none, got 3"):
        pipeline.render(tokens, text=["a cat"] * 3)
    with pytest.raises(ValueError, match="seed must be one or 3, got 2"):
        pipeline.render(tokens, seed=[1, 2])
    with pytest.raises(ValueError, match="latent_channels of the auto-encoder must be 3, got 4"):
        DecoderPipeline(decoder, VaeConfig(block_out_channels=(8,)).build())
    with pytest.raises(ValueError, match="grid of the codes must be a whole number of times .* as that of the patches"):
        TINY.build(SEQUENCE, "cafe")


@pytest.mark.parametrize("wrong", [{"patch": 5}, {"num_heads": 3}, {"dim": 6, "num_heads": 2}])
def test_a_wrong_config_is_refused(wrong):
    with pytest.raises(ValueError, match="must be a multiple"):
        DecoderConfig(**wrong)


def test_the_default_condition_is_the_grid():
    assert DecoderConfig().condition == GridConditionConfig()
