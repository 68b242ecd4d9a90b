"""Trains the auto-encoder of the diffusion decoder on composed scenes.

python -m rebus.train.vae --preset mini --run.output runs/vae
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import SCENE_SIZE_PX
from rebus.model.vae import VaeConfig, downsampling, fit_scale, posterior, rebuild
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.loop import launch


@dataclass(frozen=True, kw_only=True)
class VaeLossConfig:
    """Weights of the terms, for pictures in [0, 1]."""

    l1: float = 1.0
    """Mean absolute error."""
    l2: float = 1.0
    """Mean squared error."""
    edges: float = 0.5
    """Mean absolute error of the differences between neighbours, at three scales: sharp edges without a network."""
    kl: float = 1e-5
    """Kullback-Leibler divergence of the latents from the unit Gaussian, mean over the latents."""


@dataclass(frozen=True, kw_only=True)
class VaeStageConfig:
    """A whole training of an auto-encoder."""

    run: RunConfig
    """Steps, batch size, folders."""
    optim: OptimConfig
    """Learning rate and its course."""
    vae: VaeConfig = VaeConfig()
    """The model."""
    weights: VaeLossConfig = VaeLossConfig()
    """What counts in a rebuilt picture."""
    crop_px: int = 64
    """Side of the square that is cut out of each scene: without attention pieces teach as much as wholes."""
    num_validation: int = 128
    """Held-out scenes looked at by a validation."""


@dataclass(frozen=True, eq=False)
class VaeBatch:
    """Pictures in [0, 1], and the noise that samples their latents."""

    images: Float[Tensor, "batch 3 height width"]
    noise: Float[Tensor, "batch channels rows columns"]


class VaeStage:
    """Pieces of scenes in, rebuilt pieces out."""

    def __init__(self, config: VaeStageConfig, pack: EmojiPack) -> None:
        self.config, self.pack = config, pack
        self.parts: dict[str, str] = {}
        self.train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        torch.manual_seed(config.run.seed)
        self.vae: AutoencoderKL = config.vae.build()
        self.model: nn.Module = self.vae
        if not (0 < config.crop_px <= SCENE_SIZE_PX and config.crop_px % downsampling(self.vae) == 0):
            wanted = f"a multiple of {downsampling(self.vae)} up to {SCENE_SIZE_PX}"
            raise ValueError(f"crop_px must be {wanted}, got {config.crop_px}")

    def batch(self, step: int, rank: int, world: int) -> VaeBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        seed, size, crop_px = self.config.run.seed, self.config.run.batch_size, self.config.crop_px
        scenes = scene_rows(self.train_scenes, size, seed=seed, step=step, rank=rank, world=world)
        rngs = [random.Random(f"{seed}/{step}/{row}/crop") for row in range(size)[rank::world]]
        corners = [(rng.randint(0, SCENE_SIZE_PX - crop_px), rng.randint(0, SCENE_SIZE_PX - crop_px)) for rng in rngs]
        pictures = pictures_of(scenes, self.pack)
        crops = [image[:, y : y + crop_px, x : x + crop_px] for image, (y, x) in zip(pictures, corners, strict=True)]
        side = crop_px // downsampling(self.vae)
        shape = (self.config.vae.latent_channels, side, side)
        generators = [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs]
        noise = [torch.randn(shape, generator=generator) for generator in generators]
        return VaeBatch(torch.stack(crops) / 255, torch.stack(noise))

    def loss(self, batch: VaeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of the weighted terms, and each of them."""
        mean, log_variance = (moment.float() for moment in posterior(self.vae, batch.images))
        rebuilt = rebuild(self.vae, mean + batch.noise * (log_variance / 2).exp()).float()
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        weights = self.config.weights
        terms = {
            "l1": weights.l1 * F.l1_loss(rebuilt, batch.images),
            "l2": weights.l2 * F.mse_loss(rebuilt, batch.images),
            "edges": weights.edges * edge_distance(rebuilt, batch.images),
            "kl": weights.kl * kl,
        }
        return torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()}

    def validate(self) -> dict[str, float]:
        """Returns how close whole rebuilt held-out scenes come to the true ones, the mean over scenes."""
        images = self._scenes(self.held_out_scenes, self.config.num_validation)
        rebuilt = torch.cat([self._rebuilt(part) for part in images.split(16)])
        psnr = peak_signal_noise_ratio(rebuilt, images, data_range=1.0, dim=(1, 2, 3))
        return {"psnr_db": psnr.item()}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: above the true one, below it the rebuilt one."""
        images = self._scenes(self.held_out_scenes, 8)
        sheet = rearrange(torch.stack([images, self._rebuilt(images)]), "row b c h w -> (row h) (b w) c")
        Image.fromarray((sheet * 255).round().byte().cpu().numpy()).save(folder / "rebuilt.png")

    def export(self, folder: Path) -> None:
        """Writes the auto-encoder in the form of diffusers, its latents scaled by scenes of the training."""
        fit_scale(self.vae, self._scenes(self.train_scenes, self.config.num_validation))
        self.vae.save_pretrained(folder)

    def _scenes(self, sampler: SceneSampler, number: int) -> Float[Tensor, "batch 3 height width"]:
        device = next(self.model.parameters()).device
        return pictures_of(scene_rows(sampler, number, seed=0, step=0), self.pack).to(device) / 255

    def _rebuilt(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        return rebuild(self.vae, posterior(self.vae, images)[0]).clamp(0, 1)


def edge_distance(
    images: Float[Tensor, "batch 3 height width"], targets: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Returns the mean absolute error of the differences between neighbouring pixels, summed over three scales."""
    error, distances = images - targets, []
    for _ in range(3):
        distances += [error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()]
        error = F.avg_pool2d(error, 2)
    return torch.stack(distances).sum()


def mini() -> VaeStageConfig:
    """The shipped auto-encoder: 4 x 32 x 32 latents of 128 px scenes, 51 minutes of one core."""
    return VaeStageConfig(
        run=RunConfig(output=Path("runs/vae"), steps=3000, batch_size=32, validate_every=1000),
        optim=OptimConfig(lr=2e-3, warmup_steps=100, cooldown_fraction=0.4, weight_decay=0.01),
    )


def tiny() -> VaeStageConfig:
    """A training of seconds, for tests."""
    return VaeStageConfig(
        run=RunConfig(output=Path("runs/vae_tiny"), steps=40, batch_size=8, dtype="float32"),
        optim=OptimConfig(lr=1e-2, warmup_steps=5),
        vae=VaeConfig(fold_px=4, block_out_channels=(16, 24)),
        crop_px=32,
        num_validation=8,
    )


PRESETS = {"mini": mini, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Trains an auto-encoder as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("vae", lambda: VaeStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
