"""A tokenizer with its teachers: what the terms get to see, what is compiled, and whether a stop changes anything."""

import shutil
import subprocess
import sys
from dataclasses import replace

import jaxtyping
import pytest
import safetensors.torch
import torch
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio
from transformers import ConvNextConfig, ConvNextModel

from rebus.data.emoji import EmojiPack
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.noisy_cnn import NoisyCnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.supervision.adversarial import AdversarialConfig
from rebus.tokenizers.supervision.cells import CellsConfig
from rebus.tokenizers.supervision.contract import Frozen, Term
from rebus.tokenizers.supervision.distillation import DistillationConfig
from rebus.tokenizers.supervision.feature_networks import StockNetworkConfig
from rebus.tokenizers.supervision.language_caption import LanguageCaptionConfig
from rebus.tokenizers.supervision.perceptual import PerceptualConfig
from rebus.tokenizers.supervision.proxy_codes import ProxyCodesConfig
from rebus.tokenizers.supervision.supervision import Supervision, SupervisionConfig
from rebus.tokenizers.supervision.taps import layer_widths
from rebus.tokenizers.supervision.teachers import TokenizerTeacherConfig
from rebus.tokenizers.transformer import Block
from rebus.train import runtime
from rebus.train.code_perturbation import CodePerturbationConfig
from rebus.train.config import parse
from rebus.train.loop import train
from rebus.train.taught_tokenizer import TaughtTokenizer, TokenizerBatch
from rebus.train.tokenizer import PRESETS, tiny
from rebus.train.tokenizer_stage import TokenizerStage
from rebus.train.updates import PlainUpdater

LAYER = "pixel_decoder.transformer.blocks.0"


def small_tokenizer():
    torch.manual_seed(0)
    return ImageTokenizerConfig(
        image_size_px=24,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        quantizer=FiniteScalarConfig(levels=(5, 3)),
        pixel_decoder=VitPixelDecoderConfig(dim=12, depth=1, num_heads=2),
    ).build()


def batch(step=7):
    generator = torch.Generator().manual_seed(step)
    return TokenizerBatch(
        images=torch.rand(4, 3, 24, 24, generator=generator),
        lengths=None,
        noise=None,
        text=None,
        captions=torch.randint(4, 19, (4, 6), generator=generator),
        regions=torch.randint(5, (4, 9), generator=generator),
        step=step,
        seeds=torch.arange(4),
    )


class Spy(Term):
    """Keeps what it was shown."""

    layers = (LAYER,)
    last_layer = "pixel_decoder.to_pixels"

    def forward(self, taught):
        self.taught = taught
        return {"spy": taught.rebuilt.mean()}


def taught_with(tokenizer, perturbation=None, **terms):
    """The tokenizer with the configured terms on its small pieces and names."""
    config = SupervisionConfig(text_dim=64, text_depth=1, **terms)
    widths = layer_widths(tokenizer, config.layers)
    return TaughtTokenizer(tokenizer, config.build(19, 3, 5, tokenizer.canvas, widths), perturbation)


def test_terms_see_layers_weights_and_the_right_codes_of_wrong_pictures():
    tokenizer, spy = small_tokenizer(), Spy()
    model = TaughtTokenizer(tokenizer, Supervision({"spy": spy}), CodePerturbationConfig(share=1.0, rate=1.0))
    loss, terms = model(batch())
    clean = tokenizer.quantize(batch().images)
    taught = spy.taught
    assert taught.step == 7 and taught.last_weight is tokenizer.pixel_decoder.to_pixels.weight
    assert torch.equal(taught.coded.ids, clean.ids) and torch.equal(taught.coded.features, clean.features)
    assert not torch.allclose(taught.rebuilt, tokenizer.paint(clean), atol=1e-3)
    hidden = tokenizer.pixel_decoder.to_pixels(taught.layers[LAYER])
    assert torch.equal(taught.rebuilt.flatten().sort()[0], (hidden * 0.5 + 0.5).flatten().sort()[0])
    assert torch.equal(loss, terms["spy"]) and not terms["spy"].requires_grad
    again, _ = model(batch())
    assert torch.equal(loss, again)


def test_a_decoder_with_noise_draws_for_each_picture_by_its_seed():
    cnn = CnnPixelDecoderConfig(channels=8, multipliers=(1,), num_blocks=1, dim=8, num_groups=2)
    tokenizer = replace(small_tokenizer().config, pixel_decoder=NoisyCnnPixelDecoderConfig(cnn=cnn)).build()
    for convolution in (tokenizer.pixel_decoder.convolutions.conv_in, tokenizer.pixel_decoder.convolutions.conv_out):
        nn.init.normal_(convolution.weight)  # fresh, they pass no noise on
    spy = Spy()
    spy.layers, spy.last_layer = (), None
    model = TaughtTokenizer(tokenizer, Supervision({"spy": spy}))
    rebuilt = []
    for seeds in (torch.arange(4), torch.arange(4), torch.tensor([0, 1, 2, 9])):
        model(replace(batch(), seeds=seeds))
        rebuilt.append(spy.taught.rebuilt)
    assert torch.equal(rebuilt[0], rebuilt[1]) and torch.equal(rebuilt[0][:3], rebuilt[2][:3])
    assert not torch.allclose(rebuilt[0][3], rebuilt[2][3], atol=1e-3)
    assert model.blocks_to_compile(), "a loss that draws is not compiled as a whole"


def test_unknown_layers_are_refused():
    for name, value in (("layers", ("nothing",)), ("last_layer", "nothing")):
        spy = Spy()
        setattr(spy, name, value)
        with pytest.raises(ValueError, match="layer must be one of the ImageTokenizer, .* got nothing"):
            TaughtTokenizer(small_tokenizer(), Supervision({"spy": spy}))


def test_a_foreign_network_lets_blocks_be_compiled_each_by_itself(exports):
    assert taught_with(small_tokenizer()).blocks_to_compile() == []
    perturbed = taught_with(small_tokenizer(), CodePerturbationConfig())
    assert perturbed.blocks_to_compile()
    teacher = TokenizerTeacherConfig(path=exports / "image_tokenizer")
    model = taught_with(
        small_tokenizer(), alignment=DistillationConfig(teacher=teacher, cells=CellsConfig(layer=LAYER))
    )
    blocks = model.blocks_to_compile()
    foreign = [one for part in model.modules() if isinstance(part, Frozen) for one in part.modules()]
    assert any(isinstance(one, Block) for one in foreign) and not set(blocks) & set(foreign)
    assert {model.tokenizer.get_submodule(LAYER), model.tokenizer.get_submodule("encoder.transformer.blocks.0")} <= {
        *blocks
    }


def everything(exports, folder):
    """A supervision by all terms, from what lies in folders."""
    ConvNextModel(ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2)).save_pretrained(folder)
    teacher = TokenizerTeacherConfig(path=exports / "image_tokenizer")
    small = CellsConfig(dim=64)
    return replace(
        tiny().supervision,
        perceptual=PerceptualConfig(network=StockNetworkConfig(path=folder, layers=("encoder.stages.1",)), gram=0.1),
        distillation=DistillationConfig(teacher=teacher, cells=small),
        alignment=DistillationConfig(teacher=teacher, loss="both", cells=replace(small, layer=LAYER)),
        language_caption=LanguageCaptionConfig(path=exports / "language_model", learns=True),
        proxy_codes=ProxyCodesConfig(path=exports / "image_tokenizer", cells=replace(small, depth=1)),
        adversarial=AdversarialConfig(start=1, dim=8, depth=2, adaptive=True, lecam=0.001),
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stop_changes_nothing_whatever_teaches(dtype, exports, tmp_path):
    config = replace(tiny(), supervision=everything(exports, tmp_path / "network"), num_validation=2)
    config = replace(config, perturbation=CodePerturbationConfig(share=0.5, rate=0.5))
    runs = {}
    for name in ("straight", "resumed"):
        run = replace(config.run, output=tmp_path / name, steps=4, save_every=2, dtype=dtype, batch_size=4)
        if name == "resumed":
            run.output.mkdir()
            shutil.copytree(tmp_path / "straight" / "checkpoint-2", run.output / "checkpoint-2")
        own = replace(config, run=run)
        stage = TokenizerStage(own, EmojiPack.open())
        assert train(stage, run, own.optim, own)
        state = safetensors.torch.load_file(run.output / "checkpoint-4" / "state-00000.safetensors")
        runs[name] = state, ImageTokenizer.load(run.output / "export").hash
    straight, resumed = runs["straight"], runs["resumed"]
    assert straight[1] == resumed[1] and straight[0].keys() == resumed[0].keys()
    assert all(torch.equal(value, resumed[0][name]) for name, value in straight[0].items())
    assert straight[0]["buffer/supervision.terms.adversarial.mean_true"] != 0
    assert not any(".teacher." in name and "weight/" in name for name in straight[0])


def trained(config, steps):
    """The stage after some steps of its scenes, and its metrics at each."""
    stage = TokenizerStage(config, EmojiPack.open())
    updater = PlainUpdater(stage.model.train(), stage.loss, config.optim)
    told = [updater.update([stage.batch(step, 0, 1)], config.optim.lr) for step in range(steps)]
    return stage, told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["perceptual", "distillation", "alignment", "language_caption", "proxy_codes"])
def test_each_term_alone_teaches_the_encoder(name, exports, tmp_path):
    everyone = everything(exports, tmp_path)
    nothing = {field: 0.0 for field in ("pixel_l1", "pixel_l2", "contrastive", "caption", "region")}
    alone = SupervisionConfig(**nothing, **{name: getattr(everyone, name)})
    stage, told = trained(replace(tiny(), supervision=alone, num_texts=500), 40)
    losses = [step[name].item() for step in told]
    assert sum(losses[-5:]) / 5 < 0.9 * losses[0]
    torch.manual_seed(tiny().run.seed)
    fresh = tiny().tokenizer.build().encoder
    assert not torch.allclose(stage.model.tokenizer.encoder.embed.weight, fresh.embed.weight, atol=1e-3)


@pytest.mark.slow
def test_a_decoder_that_met_wrong_codes_paints_them_better():
    pixels = replace(tiny().supervision, contrastive=0.0, caption=0.0, region=0.0)
    psnr_db = {}
    for perturbation in (None, CodePerturbationConfig(share=1.0, rate=0.3)):
        stage, _ = trained(replace(tiny(), supervision=pixels, perturbation=perturbation, num_texts=500), 100)
        tokenizer, images = stage.model.tokenizer.eval(), stage.batch(1000, 0, 1).images
        tokens = tokenizer.encode(images)
        wrong = tokenizer.quantizer.perturb(tokens.ids, 0.3, torch.Generator().manual_seed(0))
        for name, ids in (("right", tokens.ids), ("wrong", wrong)):
            rebuilt = tokenizer.decode(replace(tokens, ids=ids))
            psnr_db[name, perturbation is None] = peak_signal_noise_ratio(rebuilt, images, data_range=1.0).item()
    assert psnr_db["wrong", False] > psnr_db["wrong", True] + 1
    assert psnr_db["right", False] > psnr_db["right", True] - 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_share_the_averages_of_the_discriminator(exports, tmp_path):
    terms = {
        "adversarial": "AdversarialConfig",
        "adversarial.start": "0",
        "adversarial.dim": "8",
        "adversarial.lecam": "0.001",
        "proxy_codes": "ProxyCodesConfig",
        "proxy_codes.path": str(exports / "image_tokenizer"),
    }
    flags = [part for name, value in terms.items() for part in (f"--supervision.{name}", value)]
    flags += ["--preset", "tiny", "--run.steps", "1", "--run.batch_size", "4", "--num_validation", "2"]
    averages = {}
    for number, dtype in ((1, "float32"), (2, "float32"), (2, "bfloat16")):
        output = tmp_path / f"{number}-{dtype}"
        start = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(number), "-m"]
        told = [*start, "rebus.train.tokenizer", *flags, "--run.dtype", dtype, "--run.output", str(output)]
        subprocess.run([sys.executable, "-m", *told], check=True, timeout=300, capture_output=True)
        state = safetensors.torch.load_file(output / "checkpoint-1" / "state-00000.safetensors")
        averages[number, dtype] = state["buffer/supervision.terms.adversarial.mean_true"]
    alone = averages[1, "float32"]
    torch.testing.assert_close(averages[2, "float32"], alone, rtol=1e-4, atol=0)
    torch.testing.assert_close(averages[2, "bfloat16"], alone, rtol=0.1, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile has warnings of its own
def test_compiled_losses_and_gradients_are_the_plain_ones(exports, monkeypatch):
    teacher = TokenizerTeacherConfig(path=exports / "image_tokenizer")
    terms = {
        "alignment": DistillationConfig(teacher=teacher, cells=CellsConfig(layer=LAYER)),
        "adversarial": AdversarialConfig(start=8, dim=8, depth=1, adaptive=True),
    }
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checks of shapes cannot be compiled
    monkeypatch.setattr(nn.Module, "compile", lambda self: _compile_eagerly(self))
    monkeypatch.setattr(torch, "compile", lambda loss, compile=torch.compile: compile(loss, backend="eager"))
    for options in ({}, terms):
        told, programs = [], []
        for is_compiled in (False, True):
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            model = taught_with(small_tokenizer(), **options)
            loss = runtime.compiled(model, model) if is_compiled else model
            for step in (7, 8, 9):
                model.zero_grad()
                value, _ = loss(batch(step))
                value.backward()
                gradients = {n: one.grad.clone() for n, one in model.named_parameters() if one.grad is not None}
                told.append({"loss": value.detach(), **gradients})
                programs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        torch.testing.assert_close(told[:3], told[3:])
        assert programs[2] == 0 < programs[4] == programs[5]  # from the second step on there is no new program


def _compile_eagerly(module):
    module._compiled_call_impl = torch.compile(module._call_impl)


@pytest.mark.slow
def test_terms_are_told_on_the_command_line():
    flags = {
        "adversarial": "AdversarialConfig",
        "adversarial.start": "3",
        "alignment": "DistillationConfig",
        "alignment.teacher": "TokenizerTeacherConfig",
        "alignment.teacher.path": "there",
        "alignment.cells.layer": LAYER,
    }
    told = [part for name, value in flags.items() for part in (f"--supervision.{name}", value)]
    supervision = parse(PRESETS, ["--preset", "tiny", *told]).supervision
    assert supervision.adversarial == AdversarialConfig(start=3) and supervision.layers == (LAYER,)
    assert supervision.alignment.teacher == TokenizerTeacherConfig(path=supervision.alignment.teacher.path)
    assert str(supervision.alignment.teacher.path) == "there" and supervision.distillation is None
