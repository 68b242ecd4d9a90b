"""A tiny world for tests: sizes are distinct and mostly prime, so that swapped dimensions and ranges show."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run in one process a core

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

from rebus.tokenizers.text_tokenizer import SentencePieceTokenizer
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

settings.register_profile("rebus", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("rebus")

WORDS = (
    "a cat dog banana picture left right of the on red blue in style with two three what is there draw describe "
    "anagram many how aaa hahaha Noto 3D (flat) yes, no. <picture> it's"
).split()


@pytest.fixture(scope="session")
def layout() -> CodeLayout:
    return CodeLayout("grid", 6, (Stream("coarse", 7), Stream("fine", 11)), grid=(2, 3))


@pytest.fixture(scope="session")
def text_tokenizer() -> SentencePieceTokenizer:
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(300)]
    return SentencePieceTokenizer.train(sentences, num_pieces=421)


@pytest.fixture(scope="session")
def vocabulary(layout: CodeLayout, text_tokenizer: SentencePieceTokenizer) -> Vocabulary:
    return Vocabulary(text_tokenizer.num_pieces, layout)


@pytest.fixture(scope="session")
def inputs() -> Callable:
    """Makes a small batch as the terms of supervision see it; codes lie in one row."""
    import torch

    from rebus.tokenizers.image_tokenizer import Coded
    from rebus.tokenizers.supervision.contract import Taught

    def make(batch=6, positions=5, dim=2, length=7, side=8, pad=3, **others):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(batch, 3, side, side, generator=generator)
        features = torch.randn(batch, positions, dim, generator=generator)
        captions = torch.randint(4, 19, (batch, length), generator=generator)
        captions[:, -2:] = pad
        regions = torch.randint(11, (batch, positions), generator=generator)
        mask = torch.ones(batch, positions, dtype=torch.bool)
        coded = Coded(mask[..., None].long(), mask, features, mask, (1, positions), None, {}, {})
        return Taught(images, images + 0.1, coded, captions, regions, torch.arange(batch), **others)

    return make


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, text_tokenizer: SentencePieceTokenizer) -> Path:
    """A folder with all parts of a model, as the stages export them, with random weights."""
    # Imported here, so that tests of other things start fast.
    import torch

    from rebus.model.decoder import DecoderConfig
    from rebus.model.language_model import LanguageModelConfig
    from rebus.model.vae import VaeConfig
    from rebus.tokenizers.encoders.vit import VitEncoderConfig
    from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
    from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
    from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig

    folder = tmp_path_factory.mktemp("exports")
    torch.manual_seed(0)
    image_tokenizer = ImageTokenizerConfig(
        image_size_px=24,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        quantizer=FiniteScalarConfig(levels=(5, 3)),
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    ).build()
    image_tokenizer.save(folder / "image_tokenizer")
    vocabulary = Vocabulary(text_tokenizer.num_pieces, image_tokenizer.layout)
    sizes = LanguageModelConfig(dim=20, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=28, max_positions=96)
    language_model = sizes.build(vocabulary, torch.Generator().manual_seed(1))
    language_model.config.image_tokenizer_hash = image_tokenizer.hash
    language_model.save_pretrained(folder / "language_model")
    text_tokenizer.save(folder / "language_model", vocabulary)
    decoder_config = DecoderConfig(latent_channels=3, latent_size=(12, 12), patch=4, dim=20, depth=1, num_heads=2)
    decoder = decoder_config.build(image_tokenizer.layout, image_tokenizer.hash)
    for parameter in decoder.parameters():
        if not parameter.any():  # untrained, it would paint the noise whatever the codes are
            torch.nn.init.normal_(parameter, std=0.3)
    decoder.save(folder / "decoder")
    VaeConfig(fold_px=2, block_out_channels=(8,), latent_channels=3).build().save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def saved_model(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved model of those parts."""
    from rebus.train.assemble import AssembleConfig, assemble

    parts = {name: exports / name for name in ("language_model", "image_tokenizer", "decoder", "vae")}
    output = tmp_path_factory.mktemp("models") / "tiny"
    assemble(AssembleConfig(**parts, output=output))
    return output


@pytest.fixture
def blind_judge() -> Any:
    """A judge that finds nothing and reads nothing, in pictures of any size."""
    from rebus.data.emoji import EmojiPack
    from rebus.evaluation.judges import Judge

    class Blind:
        def detect(self, images: Any) -> list[list[Any]]:
            return [[] for _ in images]

        def read(self, picture: Any) -> list[str]:
            return []

    return Judge(Blind(), Blind(), EmojiPack.open())


class TinyBase(NamedTuple):
    """A diffusion model as users have it, with random weights."""

    folder: Path
    family: Any
    """The config that fits it; pictures are 32 px, codes a grid of 2 x 2."""

    def load(self, **changes: Any) -> Any:
        """Reads it, as a family with other values."""
        from rebus.model.borrowed_decoders.weights import load_base

        return load_base(self.folder, replace(self.family, **changes))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyBase]:
    """Tiny diffusion models by the name of the family, made when they are first asked for."""
    import diffusers
    import torch

    from rebus.model.borrowed_decoders.code_features import RowFeaturesConfig
    from rebus.model.borrowed_decoders.flux import FluxConfig
    from rebus.model.borrowed_decoders.lumina2 import Lumina2Config
    from rebus.model.borrowed_decoders.sana import SanaConfig
    from rebus.model.borrowed_decoders.sequence_head import CodeReaderConfig
    from rebus.model.borrowed_decoders.stable_diffusion import StableDiffusionConfig
    from rebus.model.borrowed_decoders.stable_diffusion_3 import StableDiffusion3Config
    from rebus.model.borrowed_decoders.stable_diffusion_xl import StableDiffusionXLConfig
    from rebus.model.borrowed_decoders.unclip import UnclipConfig

    folder = tmp_path_factory.mktemp("bases")
    halves = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    gaussian = ("AutoencoderKL", {**halves, "block_out_channels": [2] * 4, "norm_num_groups": 1})
    levels = {"block_out_channels": [4] * 4, "layers_per_block": [1] * 4, "qkv_multiscales": [[]] * 4}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in levels.items()}
    plain = ("AutoencoderDC", {**sides, "latent_channels": 4, "scaling_factor": 0.5})
    blocks = {"block_out_channels": [8, 8], "norm_num_groups": 2, "layers_per_block": 1, "attention_head_dim": 2}
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    unet = {**blocks, "down_block_types": down, "up_block_types": up, "cross_attention_dim": 12}
    heads = {"num_attention_heads": 2, "num_layers": 2}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    flow = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    pooled = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    labels = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12}
    caption = {"joint_attention_dim": 12, "pooled_projection_dim": 6}
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8}
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
    sizes = {
        "sd15": ("unet", "UNet2DConditionModel", unet, ("PNDMScheduler", {**betas, "skip_prk_steps": True})),
        "sdxl": (
            "unet",
            "UNet2DConditionModel",
            {**unet, **pooled, "projection_class_embeddings_input_dim": 30},
            ("EulerDiscreteScheduler", betas),
        ),
        "unclip": (
            "unet",
            "UNet2DConditionModel",
            {**unet, **labels},
            ("DDIMScheduler", {**betas, "prediction_type": "v_prediction"}),
        ),
        "sd3": (
            "transformer",
            "SD3Transformer2DModel",
            {**heads, **caption, "in_channels": 4, "out_channels": 4, "attention_head_dim": 8, "sample_size": 4}
            | {"caption_projection_dim": 16, "pos_embed_max_size": 8},
            flow,
        ),
        "sana": (
            "transformer",
            "SanaTransformer2DModel",
            {**heads, **cross, "in_channels": 4, "out_channels": 4, "attention_head_dim": 4, "caption_channels": 12},
            ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True})
        ),
        "lumina2": (
            "transformer",
            "Lumina2Transformer2DModel",
            {**heads, "in_channels": 4, "hidden_size": 24, "num_refiner_layers": 1, "num_kv_heads": 1}
            | {"multiple_of": 8, "axes_dim_rope": [4, 4, 4], "axes_lens": [7, 8, 8], "cap_feat_dim": 12},
            flow,
        ),
        "flux": (
            "transformer",
            "FluxTransformer2DModel",
            {**heads, **caption, "in_channels": 16, "num_single_layers": 2, "attention_head_dim": 8}
            | {"guidance_embeds": True, "axes_dims_rope": [2, 2, 4]},
            ("FlowMatchEulerDiscreteScheduler", dynamic),
        ),
    }  # fmt: skip

    features = {"size_px": (32, 32), "features": RowFeaturesConfig(dim=5)}
    small = {**features, "reader": CodeReaderConfig(dim=16, depth=1, num_heads=2)}
    families = {
        "sd15": StableDiffusionConfig(**small),
        "sdxl": StableDiffusionXLConfig(**small),
        "sd3": StableDiffusion3Config(**small),
        "sana": SanaConfig(**small),
        "lumina2": Lumina2Config(**small),
        "flux": FluxConfig(**features, num_text_rows=3),
        "unclip": UnclipConfig(**small, values_per_code=3, num_prompt_rows=4),
    }

    def make(name: str) -> TinyBase:
        if not (folder / name).exists():
            part, model, options, (scheduler, noise) = sizes[name]
            with torch.random.fork_rng():
                torch.manual_seed(0)
                getattr(diffusers, model)(**options).save_pretrained(folder / name / part)
                vae, levels = plain if name == "sana" else gaussian
                getattr(diffusers, vae)(**levels).save_pretrained(folder / name / "vae")
            getattr(diffusers, scheduler)(**noise).save_pretrained(folder / name / "scheduler")
        return TinyBase(folder / name, families[name])

    return make


@pytest.fixture(scope="session")
def square_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained image tokenizer with 2 x 2 codes of 15."""
    import torch

    from rebus.tokenizers.encoders.vit import VitEncoderConfig
    from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
    from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
    from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig

    folder = tmp_path_factory.mktemp("square_tokenizer")
    torch.manual_seed(0)
    ImageTokenizerConfig(
        image_size_px=16,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        quantizer=FiniteScalarConfig(levels=(5, 3)),
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    ).build().save(folder)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the switch that writes golden numbers anew."""
    parser.addoption("--regolden", action="store_true", help="write tests/golden.json anew")
