"""Each family against the plain model of diffusers, called by hand as its own pipeline calls it."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, StableUnCLIPImg2ImgPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from rebus.model.borrowed_decoders import (
    flux,
    lumina2,
    sana,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unclip,
)
from rebus.model.borrowed_decoders.adapter import CodeAdapter
from rebus.model.borrowed_decoders.borrowed_decoder import BorrowedDecoder, predict, predict_guided
from rebus.model.borrowed_decoders.code_features import LookupFeaturesConfig, RowFeaturesConfig
from rebus.model.borrowed_decoders.noising import dynamic_shift, noising_of
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import Tokens

MODULES = {
    "sd15": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "sana": sana,
    "lumina2": lumina2,
    "flux": flux,
    "unclip": unclip,
}


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def tokenizer(square_tokenizer):
    return ImageTokenizer.load(square_tokenizer)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    ids = torch.randint(15, (2, 4, 1), generator=torch.Generator().manual_seed(1))
    return Tokens(ids, torch.tensor([4, 4]), tokenizer.layout)


def loaded(bases, tokenizer, name, **changes):
    """A base and an adapter all of whose parameters have been moved, so that the codes reach the output."""
    base = bases(name).load(**changes)
    torch.manual_seed(0)
    adapter = CodeAdapter.of(base.family, tokenizer).eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return base, adapter


def noisy_latents():
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([300.0, 700.0])


def by_hand(name, base, noisy, times, read):
    """The prediction as the family's own pipeline would get it."""
    text = read["encoder_hidden_states"]
    if name == "sd15":
        return base(noisy, times, encoder_hidden_states=text).sample
    if name == "sdxl":
        sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)
        added = {"text_embeds": read["pooled_projections"], "time_ids": sizes}
        return base(noisy, times, encoder_hidden_states=text, added_cond_kwargs=added).sample
    if name == "sd3":
        pooled = read["pooled_projections"]
        return base(noisy, encoder_hidden_states=text, pooled_projections=pooled, timestep=times).sample
    if name == "sana":
        return base(noisy, encoder_hidden_states=text, timestep=times).sample
    if name == "unclip":
        return base(noisy, times, encoder_hidden_states=text, class_labels=read["class_labels"]).sample
    assert name == "lumina2"
    mask = torch.ones(2, text.shape[1], dtype=torch.int64)
    return -base(noisy, 1 - times / 1000, text, mask).sample


@pytest.mark.parametrize("name", ["sd15", "sd3", "sana", "lumina2", "unclip", slow("sdxl")])
def test_the_prediction_is_that_of_the_plain_model(name, bases, tokenizer, tokens):
    base, adapter = loaded(bases, tokenizer, name)
    noisy, times = noisy_latents()
    with torch.no_grad():
        read = adapter(adapter.ids(tokens))
        expected = by_hand(name, base.model, noisy, times, read)
        predicted = BorrowedDecoder(adapter, base.model)(noisy, times, adapter.ids(tokens))
        torch.testing.assert_close(predicted, expected, atol=1e-6, rtol=0)
        without = BorrowedDecoder(adapter, base.model)(noisy, times, torch.full_like(tokens.ids, -1))
    assert (predicted - without).abs().max() > 1e-3


def flux_by_hand(base, noisy, times, read):
    """The blocks of both kinds one after the other, and between them what the codes mean."""
    packed = FluxPipeline._pack_latents(noisy, 2, 4, 4, 4)
    ids = FluxPipeline._prepare_latent_image_ids(2, 2, 2, "cpu", torch.float32)
    time = base.time_text_embed(times, torch.full((2,), 1000.0), read["pooled_projections"])
    rotary = base.pos_embed(torch.cat([torch.zeros(3, 3), ids]))
    picture, text = base.x_embedder(packed), base.context_embedder(read["encoder_hidden_states"])
    for block in base.transformer_blocks:
        text, picture = block(hidden_states=picture, encoder_hidden_states=text, temb=time, image_rotary_emb=rotary)
    picture = picture + read["meaning"]
    for block in base.single_transformer_blocks:
        text, picture = block(hidden_states=picture, encoder_hidden_states=text, temb=time, image_rotary_emb=rotary)
    return FluxPipeline._unpack_latents(base.proj_out(base.norm_out(picture, time)), 32, 32, 8)


def plain_flux(base, noisy, times, read):
    """FLUX as it is, without codes."""
    return FluxPipeline._unpack_latents(
        base(
            hidden_states=FluxPipeline._pack_latents(noisy, 2, 4, 4, 4),
            encoder_hidden_states=read["encoder_hidden_states"],
            pooled_projections=read["pooled_projections"],
            timestep=times / 1000,
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 2, 2, "cpu", torch.float32),
            txt_ids=torch.zeros(3, 3),
            guidance=torch.ones(2),
        ).sample,
        32,
        32,
        8,
    )


@torch.no_grad()
def test_codes_come_into_flux_between_the_two_kinds_of_blocks(bases, tokenizer, tokens):
    base, adapter = loaded(bases, tokenizer, "flux")
    noisy, times = noisy_latents()
    read = adapter(adapter.ids(tokens))
    assert read["meaning"].abs().max() > 0.1
    predicted = predict(adapter, base.model, noisy, times, read)
    torch.testing.assert_close(predicted, flux_by_hand(base.model, noisy, times, read), atol=1e-5, rtol=0)
    assert not torch.allclose(predicted, plain_flux(base.model, noisy, times, read), atol=1e-3)
    missing = adapter(torch.full_like(tokens.ids, -1))
    assert torch.equal(
        predict(adapter, base.model, noisy, times, missing), plain_flux(base.model, noisy, times, missing)
    )


@torch.no_grad()
def test_a_fresh_adapter_leaves_flux_exactly_as_it_is(bases, tokenizer, tokens):
    base = bases("flux").load()
    adapter = CodeAdapter.of(base.family, tokenizer)
    assert adapter.head.project.bias is None and not adapter.head.project.weight.any()
    noisy, times = noisy_latents()
    read = adapter(adapter.ids(tokens))
    predicted = predict(adapter, base.model, noisy, times, read)
    assert torch.equal(predicted, plain_flux(base.model, noisy, times, read))


@torch.no_grad()
def test_a_coarse_grid_of_codes_is_spread_over_the_patches(bases, tokenizer, tokens):
    _, adapter = loaded(bases, tokenizer, "flux", size_px=(64, 32))
    cells = adapter.head.project(adapter.features(tokens.ids)).reshape(2, 2, 2, -1)
    meaning = adapter(tokens.ids)["meaning"].reshape(2, 4, 2, -1)
    for row in range(4):
        for column in range(2):
            assert torch.equal(meaning[:, row, column], cells[:, row // 2, column])


@torch.no_grad()
def test_unclip_reads_an_embedding_as_its_own_pipeline_gives_it(bases, tokenizer, tokens):
    _, adapter = loaded(bases, tokenizer, "unclip")
    oracle = StableUnCLIPImg2ImgPipeline.__new__(StableUnCLIPImg2ImgPipeline)
    normalizer, noising = StableUnCLIPImageNormalizer(6), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    normalizer.mean.copy_(torch.randn(1, 6))
    normalizer.std.copy_(1 + torch.rand(1, 6))
    oracle.__dict__ |= {"image_normalizer": normalizer, "image_noising_scheduler": noising}
    prompt = torch.randn(4, 12)
    kept = noising.alphas_cumprod[0]
    adapter.head.take_over(mean=normalizer.mean[0], std=normalizer.std[0], kept=kept, empty_prompt=prompt)
    embedding = adapter.head.embedding(adapter.features(tokens.ids))
    expected = oracle.noise_image_embeddings(embedding, noise_level=0, noise=torch.zeros(2, 6))
    read = adapter(tokens.ids)
    torch.testing.assert_close(read["class_labels"], expected)
    assert torch.equal(read["encoder_hidden_states"], prompt.expand(2, 4, 12))
    assert not adapter(torch.full_like(tokens.ids, -1))["class_labels"].any()
    with pytest.raises(ValueError, match="values of shape"):
        adapter.head.take_over(mean=torch.zeros(5), std=torch.ones(5), kept=kept, empty_prompt=prompt)


@torch.no_grad()
@pytest.mark.parametrize("name", ["flux", slow("sd15")])
def test_guidance_equals_two_passes(name, bases, tokenizer, tokens):
    base, adapter = loaded(bases, tokenizer, name)
    noisy, times = noisy_latents()
    read, missing = adapter(tokens.ids), adapter(torch.full_like(tokens.ids, -1))
    towards, away = (predict(adapter, base.model, noisy, times, one) for one in (read, missing))
    guided = predict_guided(adapter, base.model, noisy, times, (read, missing), 2.5)
    torch.testing.assert_close(guided, away + 2.5 * (towards - away), atol=1e-5, rtol=0)
    assert torch.equal(predict_guided(adapter, base.model, noisy, times, (read, missing), 1.0), towards)


@pytest.mark.parametrize("features", [RowFeaturesConfig(dim=5), LookupFeaturesConfig()])
def test_every_code_and_its_place_matter(features, bases, tokenizer):
    _, adapter = loaded(bases, tokenizer, "sd15", features=features)
    ids = torch.arange(4).reshape(1, 4, 1)
    with torch.no_grad():
        plain = adapter(ids)["encoder_hidden_states"]
        for position in range(4):
            other, lost = ids.clone(), ids.clone()
            other[0, position], lost[0, position] = 9, -1
            results = [adapter(one)["encoder_hidden_states"] for one in (other, lost)]
            assert all((plain - one).abs().max() > 1e-3 for one in (*results, results[0] - results[1] + plain))
        assert not torch.allclose(adapter(ids.flip(1))["encoder_hidden_states"], plain, atol=1e-3)


def test_what_the_tokenizer_knows_of_codes_stays_as_it_is(bases, tokenizer, tokens):
    base = bases("sd15").load(features=LookupFeaturesConfig())
    adapter = CodeAdapter.of(base.family, tokenizer)
    torch.testing.assert_close(adapter.features(tokens.ids), tokenizer.embed(tokens))
    assert not any(parameter.requires_grad for parameter in adapter.features.quantizer.parameters())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_diffusion_noise_is_that_of_the_scheduler(prediction):
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
    noising, generator = noising_of(scheduler), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 50, 3, 4, 4, generator=generator)
    times = noising.draw(50, generator)
    assert times.min() >= 0 and times.max() <= 999 and len(times.unique()) > 40
    torch.testing.assert_close(noising.noisy(clean, noise, times), scheduler.add_noise(clean, noise, times.long()))
    velocity = scheduler.get_velocity(clean, noise, times.long())
    expected = noise if prediction == "epsilon" else velocity
    torch.testing.assert_close(noising.target(clean, noise, times), expected)


def test_flow_noise_is_that_of_the_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noising, generator = noising_of(scheduler), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, 4, 4, generator=generator)
    times = scheduler.timesteps[::200]
    torch.testing.assert_close(noising.noisy(clean, noise, times), scheduler.scale_noise(clean, times, noise))
    scheduler.set_timesteps(1)  # one step with the target leads back to the picture
    back = scheduler.step(noising.target(clean, noise, times), scheduler.timesteps[0], noise).prev_sample
    torch.testing.assert_close(back, clean)
    drawn = noising.draw(4000, generator)
    assert abs(drawn.median() - 750) < 20  # half, shifted by 3


def test_the_dynamic_shift_is_that_of_flux():
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    for patches in (16, 256, 1000, 4096):
        assert dynamic_shift(config, patches) == pytest.approx(calculate_shift(patches))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type must be epsilon, v_prediction or flow_prediction, got sample"),
        ({"num_train_timesteps": 100}, "num_train_timesteps must be 1000, got 100"),
    ],
)
def test_another_kind_of_scheduler_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        noising_of(DDPMScheduler(**options))


@pytest.mark.parametrize("name", ["flux", "sana", *map(slow, ("sd15", "sdxl", "sd3", "lumina2", "unclip"))])
def test_the_published_size_builds_on_the_meta_device(name, bases, tokenizer):
    family = type(bases(name).family)()
    with torch.device("meta"):
        base = family.base_class()(**family.architecture)
        head = family.build_head(768, tokenizer.layout)
    assert sum(parameter.numel() for parameter in base.parameters()) == MODULES[name].NUM_PARAMETERS
    assert sum(parameter.numel() for parameter in head.parameters()) > 1e6
