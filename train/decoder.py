"""Trains the diffusion decoder: codes of a frozen image tokenizer to latents of a frozen auto-encoder.

Run: ``python -m rebus.train.decoder --preset mini --vae runs/vae/export --image_tokenizer runs/tokenizer/export``
"""

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import Scene
from rebus.model.code_condition import GridConditionConfig
from rebus.model.decoder import DecoderConfig, DecoderPipeline
from rebus.model.flow import interpolate, logit_normal_times, velocity_target
from rebus.model.saved import WEIGHTS, file_hash
from rebus.model.vae import decode_latents, encode_latents, load_vae
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.imperfect_codes import ImperfectCodesConfig, spoilt
from rebus.train.latent_cache import Encoded, LatentCacheConfig, open_cache
from rebus.train.loop import launch
from rebus.train.runtime import autocast

SHOWN_STEPS = (1, 4, 25)
"""Evaluations of the decoder for the rows of the sample sheet."""
_START_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class DecoderStageConfig:
    """A whole training of a diffusion decoder."""

    run: RunConfig
    """Steps, batch size, folders; a row of a batch is one noise of one picture."""
    optim: OptimConfig
    """Learning rate and its course."""
    vae: Path = Path("runs/vae/export")
    """Folder of the trained auto-encoder."""
    image_tokenizer: Path = Path("runs/tokenizer/export")
    """Folder of the trained image tokenizer."""
    decoder: DecoderConfig = DecoderConfig()
    """The model."""
    codes: ImperfectCodesConfig = ImperfectCodesConfig()
    """How the codes are spoilt in training."""
    noises_per_picture: int = 2
    """Rows made of one picture, each with its own noise, time and spoilt codes: encoding costs as much as training."""
    time_mean: float = 0.5
    """Mean of the times' logits: above 0, since few steps depend most on the noisy end."""
    time_std: float = 1.0
    """Spread of the times' logits."""
    cache: LatentCacheConfig | None = None
    """Where the latents and codes of so many scenes are kept; by default each step draws and encodes new scenes."""
    num_start_pictures: int = 2048
    """Scenes over which the mean latents of each code are taken, from which its embedding starts."""
    num_validation: int = 64
    """Held-out scenes looked at by a validation."""

    def __post_init__(self) -> None:
        if self.noises_per_picture < 1 or self.run.batch_size % self.noises_per_picture:
            wanted, got = f"a divisor of run.batch_size = {self.run.batch_size}", self.noises_per_picture
            raise ValueError(f"noises_per_picture must be {wanted}, got {got}")


@dataclass(frozen=True, eq=False)
class DecoderBatch:
    """Latents, the noise and time that spoil them, and codes."""

    latents: Float[Tensor, "batch channels height width"]
    noise: Float[Tensor, "batch channels height width"]
    time: Float[Tensor, " batch"]
    ids: Int[Tensor, "batch positions streams"]


class DecoderStage:
    """Scenes through two frozen encoders in, velocities out."""

    def __init__(self, config: DecoderStageConfig, pack: EmojiPack) -> None:
        self.config, self.pack = config, pack
        self.train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        self.vae = load_vae(config.vae)
        self.tokenizer = ImageTokenizer.load(config.image_tokenizer).requires_grad_(False)
        vae_hash = file_hash(config.vae / Path(WEIGHTS["vae"]).name)[:16]
        self.parts = {"image_tokenizer": self.tokenizer.hash, "vae": vae_hash}
        torch.manual_seed(config.run.seed)
        self.decoder = config.decoder.build(self.tokenizer.layout, self.tokenizer.hash)
        self.model: nn.Module = self.decoder
        self.pipeline = DecoderPipeline(self.decoder, self.vae)
        made = (self.train_scenes, self.vae, vae_hash, self.tokenizer)
        self.cache = None if config.cache is None else open_cache(config.cache, *made)
        if isinstance(config.decoder.condition, GridConditionConfig):
            self.decoder.embed_codes.place(self._mean_latents(config.num_start_pictures))

    def batch(self, step: int, rank: int, world: int) -> DecoderBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        config, seed, copies = self.config, self.config.run.seed, self.config.noises_per_picture
        num_pictures = config.run.batch_size // copies
        latents, ids = self._encoded(num_pictures, step, rank, world)
        rows = [(row, copy) for row in range(num_pictures)[rank::world] for copy in range(copies)]
        rngs = [random.Random(f"{seed}/{step}/{row}/{copy}/noise") for row, copy in rows]
        generators = [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs]
        noise = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
        mean, std = config.time_mean, config.time_std
        times = [logit_normal_times(1, mean=mean, std=std, generator=generator) for generator in generators]
        quantizer, ids = self.tokenizer.quantizer, ids.repeat_interleave(copies, dim=0)
        return DecoderBatch(
            latents.repeat_interleave(copies, dim=0),
            torch.stack(noise).to(latents.device),
            torch.cat(times).to(latents.device),
            torch.stack([spoilt(row, quantizer, config.codes, rng) for row, rng in zip(ids, rngs, strict=True)]),
        )

    def loss(self, batch: DecoderBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean squared error of the velocity."""
        noisy = interpolate(batch.latents, batch.noise, batch.time)
        velocity = self.decoder(noisy, batch.time, batch.ids).float()
        return F.mse_loss(velocity, velocity_target(batch.latents, batch.noise)), {}

    def validate(self) -> dict[str, float]:
        """Returns the velocity's error on held-out scenes, and how close those painted in 4 steps come to the true."""
        images = self._held_out(self.config.num_validation)
        latents, tokens = encode_latents(self.vae, images), self.tokenizer.encode(images)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        # Evenly spread times have less luck in them than drawn ones.
        time = (torch.arange(len(latents), device=latents.device) + 0.5) / len(latents)
        loss, _ = self.loss(DecoderBatch(latents, noise, time, tokens.ids))
        psnr = peak_signal_noise_ratio(self.pipeline.render(tokens, steps=4), images, data_range=1.0, dim=(1, 2, 3))
        return {"velocity_mse": loss.item(), "psnr_db": psnr.item()}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: true, rebuilt by the auto-encoder, painted in 1, 4 and 25 steps."""
        images = self._held_out(8)
        tokens = self.tokenizer.encode(images)
        painted = [self.pipeline.render(tokens, steps=steps) for steps in SHOWN_STEPS]
        rows = torch.stack([images, decode_latents(self.vae, encode_latents(self.vae, images)), *painted])
        sheet = (rearrange(rows, "row b c h w -> (row h) (b w) c") * 255).round().byte()
        Image.fromarray(sheet.cpu().numpy()).save(folder / "painted.png")

    def export(self, folder: Path) -> None:
        """Writes the decoder, without the frozen models."""
        self.decoder.save(folder)

    def _mean_latents(self, num_pictures: int) -> Float[Tensor, "codes values"]:
        """Returns the mean patch of latents where each code of stream 0 stands; that of all codes for one never met."""
        patch, size = self.config.decoder.patch, self.tokenizer.layout.streams[0].size
        pairs = []
        for step in range(math.ceil(num_pictures / _START_BATCH)):
            images = self._pictures(scene_rows(self.train_scenes, _START_BATCH, seed=self.config.run.seed, step=step))
            latents = encode_latents(self.vae, images).cpu()
            patches = rearrange(latents, "b c (h p) (w q) -> (b h w) (c p q)", p=patch, q=patch)
            pairs.append((self.tokenizer.encode(images).ids[..., 0].flatten().cpu(), patches))
        ids, patches = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        counts = torch.bincount(ids, minlength=size)[:, None]
        sums = torch.zeros(size, patches.shape[1]).index_add_(0, ids, patches)
        return torch.where(counts > 0, sums / counts.clamp_min(1), patches.mean(dim=0))

    def _encoded(self, num_pictures: int, step: int, rank: int, world: int) -> Encoded:
        """Returns this rank's latents and codes of so many scenes of a step, from the cache or fresh."""
        place = {"seed": self.config.run.seed, "step": step, "rank": rank, "world": world}
        if self.cache is not None:
            device = next(self.decoder.parameters()).device
            self.tokenizer.to(device)  # whose quantizer makes codes wrong
            return Encoded(*(part.to(device) for part in self.cache.batch(num_pictures, **place)))
        images = self._pictures(scene_rows(self.train_scenes, num_pictures, **place))
        with autocast(self.config.run, images.device):
            latents = encode_latents(self.vae, images).float()
        return Encoded(latents, self.tokenizer.encode(images).ids)

    def _held_out(self, number: int) -> Float[Tensor, "batch 3 height width"]:
        return self._pictures(scene_rows(self.held_out_scenes, number, seed=0, step=0))

    def _pictures(self, scenes: list[Scene]) -> Float[Tensor, "batch 3 height width"]:
        """Returns drawn scenes on the decoder's device, to which the frozen models follow."""
        device = next(self.decoder.parameters()).device
        nn.Module.to(self.vae, device)
        self.tokenizer.to(device)
        return pictures_of(scenes, self.pack).to(device) / 255


def mini() -> DecoderStageConfig:
    """The shipped decoder: 64 patches of the latents of 128 px scenes, one core, 40 minutes."""
    return DecoderStageConfig(
        run=RunConfig(output=Path("runs/decoder"), steps=3600, batch_size=32, ema=0.999, validate_every=900),
        optim=OptimConfig(lr=1e-3, warmup_steps=200, cooldown_fraction=0.3, weight_decay=0.01),
        decoder=DecoderConfig(depth=6),
    )


def compared() -> DecoderStageConfig:
    """The small decoder that every image tokenizer of a comparison gets."""
    config = mini()
    return replace(config, decoder=replace(config.decoder, dim=192, depth=4, num_heads=3))


def tiny() -> DecoderStageConfig:
    """A training of seconds, for tests."""
    return DecoderStageConfig(
        run=RunConfig(output=Path("runs/decoder_tiny"), steps=100, batch_size=8, dtype="float32"),
        optim=OptimConfig(lr=1e-2, warmup_steps=5),
        decoder=DecoderConfig(latent_size=(16, 16), dim=64, depth=1, num_heads=2),
        num_start_pictures=64,
        num_validation=8,
    )


PRESETS = {"mini": mini, "compared": compared, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Trains a diffusion decoder as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("decoder", lambda: DecoderStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
