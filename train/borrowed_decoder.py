"""Trains the adapter of a borrowed decoder: codes of a frozen image tokenizer to a diffusion model that a user has.

Run: ``python -m rebus.train.borrowed_decoder --preset sd15 --base FOLDER --image_tokenizer runs/tokenizer/export``

FOLDER is a pipeline of diffusers as the Hub holds it, such as that of Stable Diffusion 1.5; nothing is downloaded.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import Scene
from rebus.model.borrowed_decoders.choice import DenoisingFamilyConfig
from rebus.model.borrowed_decoders.flux import FluxConfig
from rebus.model.borrowed_decoders.latents import resized, to_latents, to_pictures
from rebus.model.borrowed_decoders.lora import BaseLoraConfig
from rebus.model.borrowed_decoders.lumina2 import Lumina2Config
from rebus.model.borrowed_decoders.sana import SanaConfig
from rebus.model.borrowed_decoders.stable_diffusion import StableDiffusionConfig
from rebus.model.borrowed_decoders.stable_diffusion_3 import StableDiffusion3Config
from rebus.model.borrowed_decoders.stable_diffusion_xl import StableDiffusionXLConfig
from rebus.model.saved import file_hash
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.imperfect_codes import ImperfectCodesConfig, spoilt
from rebus.train.loop import launch

SHOWN_STEPS = 25
"""Evaluations of the base for the row of painted scenes in the sample sheet."""
SHOWN_GUIDANCE = 3.0
"""Its guidance."""


@dataclass(frozen=True, kw_only=True)
class BorrowedDecoderStageConfig:
    """A whole training of an adapter."""

    run: RunConfig
    """Steps, batch size, folders; a row of a batch is one picture."""
    optim: OptimConfig
    """Learning rate and its course."""
    base: Path = Path("runs/base")
    """Folder of a pipeline of diffusers."""
    image_tokenizer: Path = Path("runs/tokenizer/export")
    """Folder of the trained image tokenizer."""
    family: DenoisingFamilyConfig = StableDiffusionConfig()
    """What kind of base it is, and how codes get into it."""
    lora: BaseLoraConfig | None = None
    """Additions to the base that learn with the adapter; without them it is frozen as a whole."""
    base_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the base's weights."""
    codes: ImperfectCodesConfig = ImperfectCodesConfig()
    """How the codes are spoilt in training."""
    num_validation: int = 16
    """Held-out scenes looked at by a validation."""


@dataclass(frozen=True, eq=False)
class BorrowedBatch:
    """Latents, the noise and timesteps that spoil them, and codes."""

    latents: Float[Tensor, "batch channels height width"]
    noise: Float[Tensor, "batch channels height width"]
    timesteps: Float[Tensor, " batch"]
    ids: Int[Tensor, "batch positions streams"]


class BorrowedDecoderStage:
    """Scenes through two frozen encoders in, noise or velocities out."""

    def __init__(self, config: BorrowedDecoderStageConfig, pack: EmojiPack) -> None:
        # diffusers takes seconds to import, which --help need not wait for.
        from rebus.model.borrowed_decoders.adapter import CodeAdapter
        from rebus.model.borrowed_decoders.borrowed_decoder import BorrowedDecoder
        from rebus.model.borrowed_decoders.lora import add_lora
        from rebus.model.borrowed_decoders.noising import noising_of
        from rebus.model.borrowed_decoders.weights import load_base

        self.config, self.pack = config, pack
        self.train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        self.tokenizer = ImageTokenizer.load(config.image_tokenizer).requires_grad_(False)
        loaded = load_base(config.base, config.family, getattr(torch, config.base_dtype))
        self.vae: Any = loaded.vae
        self.scheduler, self.noising = loaded.scheduler, noising_of(loaded.scheduler)
        vae_hash = file_hash(config.base / "vae" / "diffusion_pytorch_model.safetensors")[:16]
        self.parts = {"image_tokenizer": self.tokenizer.hash, "vae": vae_hash}  # the base is hashed as frozen weights
        torch.manual_seed(config.run.seed)
        self.decoder = BorrowedDecoder(CodeAdapter.of(loaded.family, self.tokenizer), loaded.model)
        if config.lora is not None:
            add_lora(self.decoder.base, config.lora, config.run.seed)
        self.model: nn.Module = self.decoder

    def batch(self, step: int, rank: int, world: int) -> BorrowedBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        config, seed = self.config, self.config.run.seed
        size = config.run.batch_size
        scenes = scene_rows(self.train_scenes, size, seed=seed, step=step, rank=rank, world=world)
        latents, ids = self._encoded(scenes)
        rngs = [random.Random(f"{seed}/{step}/{row}/noise") for row in range(size)[rank::world]]
        generators = [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        timesteps = torch.cat([self.noising.draw(1, generator) for generator in generators])
        quantizer = self.tokenizer.quantizer
        return BorrowedBatch(
            latents,
            noise.to(latents.device),
            timesteps.to(latents.device),
            torch.stack([spoilt(row, quantizer, config.codes, rng) for row, rng in zip(ids, rngs, strict=True)]),
        )

    def loss(self, batch: BorrowedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean squared error of what the base predicts, noise or velocity."""
        noisy = self.noising.noisy(batch.latents, batch.noise, batch.timesteps)
        predicted = self.decoder(noisy, batch.timesteps, batch.ids)
        return F.mse_loss(predicted, self.noising.target(batch.latents, batch.noise, batch.timesteps)), {}

    def validate(self) -> dict[str, float]:
        """Returns the error on held-out scenes, with their codes and without any: the codes should make it less."""
        scenes = scene_rows(self.held_out_scenes, self.config.num_validation, seed=0, step=0)
        latents, ids = self._encoded(scenes)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        # Evenly spread timesteps have less luck in them than drawn ones.
        timesteps = ((torch.arange(len(latents), device=latents.device) + 0.5) * 1000 / len(latents)).floor()
        with_codes, _ = self.loss(BorrowedBatch(latents, noise, timesteps, ids))
        without, _ = self.loss(BorrowedBatch(latents, noise, timesteps, torch.full_like(ids, -1)))
        return {"mse": with_codes.item(), "mse_without_codes": without.item()}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: true, rebuilt by the auto-encoder, painted from codes."""
        scenes = scene_rows(self.held_out_scenes, 4, seed=0, step=0)
        images = self._pictures(scenes)
        pipeline = self._pipeline(self.decoder.base)
        pipeline.set_progress_bar_config(disable=True)
        painted = pipeline(
            self.tokenizer.encode(resized(images, self._coded_size)),
            num_inference_steps=SHOWN_STEPS,
            guidance_scale=SHOWN_GUIDANCE,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        true = resized(images, self.decoder.adapter.family.size_px)
        rows = torch.stack([true, to_pictures(self.vae, to_latents(self.vae, true)), painted.images])
        sheet = (rearrange(rows, "row b c h w -> (row h) (b w) c") * 255).round().byte()
        Image.fromarray(sheet.cpu().numpy()).save(folder / "painted.png")

    def export(self, folder: Path) -> None:
        """Writes a pipeline of diffusers with all of its parts; what the base learned is in its matrices."""
        from rebus.model.borrowed_decoders.lora import merged

        self._pipeline(merged(self.decoder.base)).save_pretrained(folder)

    def _pipeline(self, base: Any) -> Any:
        from rebus.model.borrowed_decoders.pipeline import BorrowedDecoderPipeline

        return BorrowedDecoderPipeline(self.decoder.adapter, base, self.vae, self.scheduler)

    def _encoded(self, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        """Returns latents and codes of scenes."""
        images = self._pictures(scenes)
        latents = to_latents(self.vae, resized(images, self.decoder.adapter.family.size_px))
        return latents, self.decoder.adapter.ids(self.tokenizer.encode(resized(images, self._coded_size)))

    @property
    def _coded_size(self) -> tuple[int, int]:
        return self.tokenizer.config.sizes_px[0]

    def _pictures(self, scenes: list[Scene]) -> Float[Tensor, "batch 3 height width"]:
        """Returns drawn scenes on the decoder's device, to which the frozen models follow."""
        device = next(self.decoder.parameters()).device
        nn.Module.to(self.vae, device)
        self.tokenizer.to(device)
        return pictures_of(scenes, self.pack).to(device) / 255


def sd15() -> BorrowedDecoderStageConfig:
    """Stable Diffusion 1.5, frozen, as LaVIT."""
    return BorrowedDecoderStageConfig(
        run=RunConfig(output=Path("runs/borrowed_decoder"), steps=20_000, batch_size=32, ema=0.999),
        optim=OptimConfig(lr=1e-4, warmup_steps=500, weight_decay=0.01),
    )


def sana() -> BorrowedDecoderStageConfig:
    """Sana 0.6B, frozen, its prompt replaced as in Tar."""
    return replace(sd15(), family=SanaConfig())


def sdxl() -> BorrowedDecoderStageConfig:
    """Stable Diffusion XL with low-rank additions."""
    return _large(StableDiffusionXLConfig())


def sd3() -> BorrowedDecoderStageConfig:
    """Stable Diffusion 3 medium with low-rank additions."""
    return _large(StableDiffusion3Config())


def lumina2() -> BorrowedDecoderStageConfig:
    """Lumina Image 2.0 with low-rank additions."""
    return _large(Lumina2Config())


def flux() -> BorrowedDecoderStageConfig:
    """FLUX.1-dev with low-rank additions, its projection zero at first as in X-Omni."""
    return _large(FluxConfig())


def _large(family: DenoisingFamilyConfig) -> BorrowedDecoderStageConfig:
    config = sd15()
    run = replace(config.run, accumulation=8, activation_checkpointing=True)
    return replace(config, run=run, family=family, lora=BaseLoraConfig())


PRESETS = {"sd15": sd15, "sana": sana, "sdxl": sdxl, "sd3": sd3, "lumina2": lumina2, "flux": flux}


def main(argv: list[str] | None = None) -> None:
    """Trains the adapter of a borrowed decoder as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("borrowed_decoder", lambda: BorrowedDecoderStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
