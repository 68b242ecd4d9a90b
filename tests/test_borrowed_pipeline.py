"""The pipeline against those of diffusers, from the same noise with the same features; and what it refuses."""

import json
import re
from dataclasses import replace

import diffusers
import pytest
import safetensors.torch
import torch

from rebus.model.borrowed_decoders.adapter import CodeAdapter
from rebus.model.borrowed_decoders.pipeline import BorrowedDecoderPipeline, open_pipeline
from rebus.model.borrowed_decoders.weights import load_base
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers, in torch

NAMES = ("sd15", "sdxl", "sd3", "sana", "lumina2", "flux", "unclip")


@pytest.fixture(scope="module")
def tokenizer(square_tokenizer):
    return ImageTokenizer.load(square_tokenizer)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    ids = torch.randint(15, (2, 4, 1), generator=torch.Generator().manual_seed(1))
    return Tokens(ids, torch.tensor([4, 4]), tokenizer.layout)


def pipeline_of(name, bases, tokenizer, *, fresh=False):
    base = bases(name).load()
    torch.manual_seed(0)
    adapter = CodeAdapter.of(base.family, tokenizer).eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.0 if fresh else 0.3 * torch.randn_like(parameter))
    pipeline = BorrowedDecoderPipeline(adapter, base.model, base.vae, base.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(bases, tokenizer):
    return pipeline_of("sd15", bases, tokenizer)


def noise():
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def stock(name, ours):
    """The pipeline of diffusers over the same base, without what reads texts."""
    parts = {"vae": ours.vae, "scheduler": ours.scheduler, "tokenizer": None, "text_encoder": None}
    if name == "sd15":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(**parts, unet=ours.base)
    if name == "sdxl":
        parts |= {"tokenizer_2": None, "text_encoder_2": None}
        return diffusers.StableDiffusionXLPipeline(**parts, unet=ours.base, add_watermarker=False)
    if name == "sd3":
        parts |= {"tokenizer_2": None, "text_encoder_2": None, "tokenizer_3": None, "text_encoder_3": None}
        return diffusers.StableDiffusion3Pipeline(**parts, transformer=ours.base)
    if name == "sana":
        return diffusers.SanaPipeline(**parts, transformer=ours.base)
    if name == "lumina2":
        return diffusers.Lumina2Pipeline(**parts, transformer=ours.base)
    parts |= {"tokenizer_2": None, "text_encoder_2": None}
    return diffusers.FluxPipeline(**parts, transformer=ours.base)


def options_of(name, read, missing):
    """How the pipeline of diffusers takes features that it need not make of texts."""
    keys = {"encoder_hidden_states": "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"}
    options = {}
    for key, option in keys.items():
        if key in read:
            options |= {option: read[key], f"negative_{option}": missing[key]}
    mask = torch.ones(2, read["encoder_hidden_states"].shape[1], dtype=torch.int64)
    if name in ("sana", "lumina2"):
        options |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    if name == "sana":
        return options | {"negative_prompt": None, "use_resolution_binning": False, "guidance_scale": 2.0}
    if name == "lumina2":
        return options | {"cfg_normalization": False, "cfg_trunc_ratio": 1.0, "guidance_scale": 2.0}
    if name == "flux":
        return options | {"true_cfg_scale": 2.0, "guidance_scale": 1.0}
    return options | {"guidance_scale": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "unclip"])
@torch.no_grad()
def test_it_paints_as_the_pipeline_of_diffusers(name, bases, tokenizer, tokens):
    ours = pipeline_of(name, bases, tokenizer, fresh=name == "flux")  # codes come into no stock FLUX
    painted = ours(tokens, num_inference_steps=3, guidance_scale=2.0, latents=noise(), output_type="latent").images
    read, missing = ours.adapter(tokens.ids), ours.adapter(torch.full_like(tokens.ids, -1))
    theirs = stock(name, ours)
    theirs.set_progress_bar_config(disable=True)
    start = diffusers.FluxPipeline._pack_latents(noise(), 2, 4, 4, 4) if name == "flux" else noise()
    options = options_of(name, read, missing)
    expected = theirs(**options, num_inference_steps=3, latents=start, height=32, width=32, output_type="latent").images
    if name == "flux":
        expected = diffusers.FluxPipeline._unpack_latents(expected, 32, 32, 8)
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["sd15", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "sd15")]
)
def test_it_comes_back_from_its_folder_and_paints_the_same(name, bases, tokenizer, tokens, tmp_path, capsys):
    ours = pipeline_of(name, bases, tokenizer)
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
    painted = ours(tokens, generator=torch.Generator().manual_seed(4), **options).images
    assert painted.shape == (2, 3, 32, 32) and 0 <= painted.min() and painted.max() <= 1
    ours.save_pretrained(tmp_path)
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}
    capsys.readouterr()
    again = open_pipeline(tmp_path, tokenizer_hash=tokenizer.hash)
    assert re.match(r"weights take .* MiB \(adapter .* MiB, base .* MiB, vae .* MiB\)", capsys.readouterr().out)
    again.set_progress_bar_config(disable=True)
    same = again(tokens, generator=torch.Generator().manual_seed(4), **options).images
    torch.testing.assert_close(same, painted, atol=1e-5, rtol=0)
    other = again(tokens, generator=torch.Generator().manual_seed(5), **options).images
    assert not torch.allclose(other, painted, atol=1e-3)


@pytest.mark.slow
def test_a_picture_is_the_same_alone_and_in_a_batch(pipeline, tokens):
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    together = pipeline(tokens, num_inference_steps=2, generator=generators, output_type="pt").images
    for row in range(2):
        generator = torch.Generator().manual_seed(5 + row)
        alone = pipeline(tokens.row(row), num_inference_steps=2, generator=generator, output_type="pt").images
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


def test_ids_and_a_prefix_paint_as_their_tokens(pipeline, tokens):
    options = {"num_inference_steps": 3, "latents": noise(), "output_type": "latent", "return_dict": False}
    whole, ids = pipeline(tokens, **options)[0], pipeline(tokens.ids, **options)[0]
    assert torch.equal(whole, ids)
    cut = tokens.ids.clone()
    cut[:, 2:] = -1
    part = pipeline(tokens.prefix(2), **options)[0]
    assert torch.equal(part, pipeline(cut, **options)[0]) and not torch.allclose(part, whole, atol=1e-4)


def test_pictures_come_in_the_type_that_is_asked_for(pipeline, tokens):
    options = {"num_inference_steps": 1, "latents": noise()}
    pt = pipeline(tokens, output_type="pt", **options).images
    np = pipeline(tokens, output_type="np", **options).images
    (pil, _) = pipeline(tokens, **options).images
    assert np.shape == (2, 32, 32, 3) and pil.size == (32, 32)
    torch.testing.assert_close(torch.from_numpy(np).permute(0, 3, 1, 2), pt)


@pytest.mark.slow
def test_it_opens_in_half_precision_with_a_whole_auto_encoder(pipeline, tokens, tmp_path):
    pipeline.save_pretrained(tmp_path)
    half = open_pipeline(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    dtypes = (half.adapter.dtype, half.base.dtype, half.vae.dtype)
    assert dtypes == (torch.bfloat16, torch.bfloat16, torch.float32)
    options = {"num_inference_steps": 2, "latents": noise(), "output_type": "pt"}
    assert 0 < (half(tokens, **options).images - pipeline(tokens, **options).images).abs().max() < 0.1


@pytest.mark.slow
def test_parts_wait_in_the_hosts_memory_if_asked(pipeline, tmp_path, monkeypatch, capsys):
    pipeline.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(BorrowedDecoderPipeline, "enable_model_cpu_offload", lambda self, device: asked.append(device))
    open_pipeline(tmp_path, device="cuda", offload=True)
    assert asked == ["cuda"]
    assert re.match(r"weights take .* of the device, .* of the host", capsys.readouterr().out)
    assert BorrowedDecoderPipeline.model_cpu_offload_seq == "adapter->base->vae"
    with pytest.raises(ValueError, match="device must be an accelerator .*, got cpu"):
        open_pipeline(tmp_path, offload=True)


def test_codes_that_do_not_fit_are_refused(pipeline, tokenizer, tokens, tmp_path):
    def wrong(message, codes=tokens, **options):
        with pytest.raises(ValueError, match=message):
            pipeline(codes, **{"num_inference_steps": 1, **options})

    wrong("num_inference_steps must be at least 1, got 0", num_inference_steps=0)
    wrong(f"tokenizer_hash must be {tokenizer.hash}, as in training, got beef", tokenizer_hash="beef")
    wrong(r"ids must lie in \[0, size\) with sizes \[15\], got codes outside", tokens.ids + 15)
    wrong("ids must have at most 4 positions, got 8", torch.cat([tokens.ids, tokens.ids], dim=1))
    other = CodeLayout("sequence", 4, (Stream("only", 15),))
    wrong("tokens must have the adapter's layout", Tokens(tokens.ids, tokens.lengths, other))
    wrong("latents must have shape", latents=torch.zeros(1, 4, 4, 4))
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tokenizer_hash must be {tokenizer.hash}, as in training, got beef"):
        open_pipeline(tmp_path, tokenizer_hash="beef")
    with pytest.raises(ValueError, match="must be a part of a pipeline"):
        open_pipeline(tmp_path / "base")


def test_a_saved_pipeline_whose_weights_do_not_fit_is_refused(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for part, name in (("adapter", "head.to_sequence.bias"), ("base", "conv_in.bias")):
        weights = tmp_path / part / "diffusion_pytorch_model.safetensors"
        state = safetensors.torch.load_file(weights)
        safetensors.torch.save_file({key: value for key, value in state.items() if key != name}, weights)
        with pytest.raises(ValueError, match=f"{part}: weights must fit config.json, got 1 missing .{name}"):
            open_pipeline(tmp_path)
        safetensors.torch.save_file(state, weights)


def changed(bases, tmp_path, change, part="unet"):
    """A copy of a base whose weights are changed."""
    folder = tmp_path / "base"
    base = bases("sd15").folder
    for path in base.rglob("*.*"):
        copy = folder / path.relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    weights = folder / part / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(weights)
    change(state)
    safetensors.torch.save_file(state, weights)
    return folder


def test_weights_that_do_not_fit_are_named(bases, tmp_path):
    def change(state):
        state["conv_input.bias"] = state.pop("conv_in.bias")
        state["conv_out.bias"] = torch.zeros(5)

    message = (
        r"1 missing \(conv_in.bias\), 1 unexpected \(conv_input.bias\), "
        r"1 of another shape \(conv_out.bias \(5,\) for \(4,\)\)"
    )
    with pytest.raises(ValueError, match=message):
        load_base(changed(bases, tmp_path, change), bases("sd15").family)


def test_old_names_of_an_auto_encoder_are_known(bases, tmp_path):
    def change(state):
        for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
            for name in [name for name in state if f".{new}." in name]:
                state[name.replace(f".{new}.", f".{old}.")] = state.pop(name)
        assert any(".proj_attn." in name for name in state)

    folder = changed(bases, tmp_path, change, "vae")
    old, present = load_base(folder, bases("sd15").family).vae.state_dict(), bases("sd15").load().vae.state_dict()
    assert old.keys() == present.keys() and all(torch.equal(old[name], present[name]) for name in old)


def test_another_kind_of_base_is_refused(bases, tmp_path):
    with pytest.raises(ValueError, match="must be a part of a pipeline of diffusers"):
        load_base(bases("sd3").folder, bases("sd15").family)
    with pytest.raises(ValueError, match="must hold a FluxTransformer2DModel, got a SD3Transformer2DModel"):
        load_base(bases("sd3").folder, bases("flux").family)
    folder = changed(bases, tmp_path, lambda state: None)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ValueError, match="_class_name must be a scheduler of diffusers, got UNet2DConditionModel"):
        load_base(folder, bases("sd15").family)
    scheduler.unlink()
    with pytest.raises(ValueError, match="must hold a scheduler"):
        load_base(folder, bases("sd15").family)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="must hold weights as safetensors .*, got config.json, .*bin"):
        load_base(folder, bases("sd15").family)


def test_a_layout_that_a_base_cannot_read_is_refused(bases, tokenizer):
    row = CodeLayout("sequence", 7, (Stream("only", 15),))
    with pytest.raises(ValueError, match="codes of a picture must be at most 6 for Lumina 2, got 7"):
        replace(bases("lumina2").family, architecture={"axes_lens": [7, 8, 8]}).build_head(5, row)
    flux = bases("flux").family
    with pytest.raises(ValueError, match=r"size_px must be 16 px times a multiple of the codes' grid, None, got"):
        flux.build_head(5, row)
    with pytest.raises(ValueError, match=r"the codes' grid, \(2, 2\), got \(32, 48\)"):
        replace(flux, size_px=(32, 48)).build_head(5, tokenizer.layout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [("sdxl", "addition_embed_type .* must be text_time"), ("unclip", "class_embed_type .* must be projection")],
)
def test_a_unet_of_another_family_is_refused(name, message, bases, tokenizer):
    family = replace(bases(name).family, architecture=bases("sd15").load().family.architecture)
    with pytest.raises(ValueError, match=message):
        family.build_head(5, tokenizer.layout)


@pytest.mark.slow
def test_a_picture_that_the_auto_encoder_does_not_divide_is_refused(bases, tokenizer, tokens):
    base = bases("sd15").load(size_px=(36, 32))
    adapter = CodeAdapter.of(base.family, tokenizer)
    with pytest.raises(ValueError, match=r"size_px must be multiples of 8, the auto-encoder's factor, got \(36, 32\)"):
        BorrowedDecoderPipeline(adapter, base.model, base.vae, base.scheduler)(tokens)
