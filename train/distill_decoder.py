"""Teaches a trained diffusion decoder to paint in 1, 2 and 4 evaluations what took it many: it becomes a flow map.

Run: ``python -m rebus.train.distill_decoder --preset mini --decoder runs/decoder/export --vae runs/vae/export
--image_tokenizer runs/tokenizer/export``

The student starts as the teacher and is told, beside the time, how far a step goes. Each batch holds trajectories of
the teacher, from noise to picture; the student learns the mean velocity over the whole of each, over a half, and over a
quarter. Where its step ends at the picture, that picture is held against the true one. And it goes on learning the
velocity at a time, which many steps need.

Sources: Boffi et al., "Flow Map Matching", https://arxiv.org/abs/2406.07507, sec. 3 (the map between any two times);
Frans et al., "One Step Diffusion via Shortcut Models", https://arxiv.org/abs/2410.12557, sec. 3 (steps of 1, 1/2, 1/4
and velocities in one batch); Luhman and Luhman, "Knowledge Distillation in Iterative Generative Models",
https://arxiv.org/abs/2101.02388, sec. 3 (regression on a teacher's whole trajectories, which need no pictures); Xie et
al., "Layton", https://arxiv.org/abs/2503.08377, abstract (few steps allow a loss on pixels).
Differs: the pixel loss has no network in it, for those that judge must not teach.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.model.decoder import DiffusionDecoder
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.flow import interpolate, logit_normal_times, velocity_target
from rebus.model.saved import WEIGHTS, file_hash
from rebus.model.vae import decode_latents, load_vae, rebuild
from rebus.tokenizers.autoencoder import scale_and_shift
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import Tokens
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.imperfect_codes import ImperfectCodesConfig, spoilt
from rebus.train.latent_cache import LatentCacheConfig, open_cache
from rebus.train.loop import launch
from rebus.train.trajectories import long_steps, trajectory

FEW_STEPS = (1, 2, 4)
"""Numbers of steps that the student learns to do with."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A whole distillation of a diffusion decoder."""

    run: RunConfig
    """Steps, batch size, folders; a row of a batch is one trajectory of the teacher."""
    optim: OptimConfig
    """Learning rate and its course."""
    decoder: Path = Path("runs/decoder/export")
    """Folder of the trained decoder, the teacher."""
    vae: Path = Path("runs/vae/export")
    """Folder of the auto-encoder in whose latents it paints."""
    image_tokenizer: Path = Path("runs/tokenizer/export")
    """Folder of the image tokenizer whose codes it paints."""
    cache: LatentCacheConfig = LatentCacheConfig()
    """Where the latents and codes of the scenes are kept."""
    codes: ImperfectCodesConfig = ImperfectCodesConfig()
    """How the codes are spoilt, for teacher and student alike."""
    teacher_steps: int = 24
    """Evaluations of the teacher for a trajectory, a multiple of 4."""
    match_weight: float = 1.0
    """Weight of the error of the velocity itself, in which true pictures teach what the teacher has not learned."""
    pixel_weight: float = 4.0
    """Weight of the mean absolute error of pixels beside the errors of velocities."""
    num_pixel_rows: int = 8
    """Most pictures of a batch that go through the auto-encoder for that: one costs more than a row does."""
    time_mean: float = 0.5
    """Mean of the logits of the times at which the velocity itself is learned."""
    time_std: float = 1.0
    """Their spread."""
    num_validation: int = 64
    """Held-out scenes looked at by a validation."""

    def __post_init__(self) -> None:
        if self.teacher_steps < 1 or self.teacher_steps % max(FEW_STEPS):
            raise ValueError(f"teacher_steps must be a multiple of {max(FEW_STEPS)}, got {self.teacher_steps}")


@dataclass(frozen=True, eq=False)
class DistillBatch:
    """What trajectories start from, and which parts of them are learned."""

    latents: Float[Tensor, "batch channels height width"]
    images: Float[Tensor, "batch 3 height_px width_px"]
    noise: Float[Tensor, "batch channels height width"]
    ids: Int[Tensor, "batch positions streams"]
    time: Float[Tensor, " batch"]
    """Where the velocity itself is learned."""
    parts: Int[Tensor, "batch few"]
    """For each of ``FEW_STEPS``, which of so many parts of the trajectory."""


class DistillStage:
    """Trajectories of a frozen teacher in, a flow map out."""

    def __init__(self, config: DistillConfig, pack: EmojiPack) -> None:
        self.config = config
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        self.vae = load_vae(config.vae)
        self.tokenizer = ImageTokenizer.load(config.image_tokenizer).requires_grad_(False)
        self.teacher = DiffusionDecoder.load(config.decoder, tokenizer_hash=self.tokenizer.hash).requires_grad_(False)
        vae_hash = file_hash(config.vae / Path(WEIGHTS["vae"]).name)[:16]
        teacher_hash = file_hash(config.decoder / Path(WEIGHTS["decoder"]).name)[:16]
        self.parts = {"image_tokenizer": self.tokenizer.hash, "vae": vae_hash, "teacher": teacher_hash}
        torch.manual_seed(config.run.seed)
        self.student = student_of(self.teacher)
        self.model: nn.Module = self.student
        self.pipeline = DecoderPipeline(self.student, self.vae)
        train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.cache = open_cache(config.cache, train_scenes, self.vae, vae_hash, self.tokenizer)

    def batch(self, step: int, rank: int, world: int) -> DistillBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        config, seed, size = self.config, self.config.run.seed, self.config.run.batch_size
        indices = self.cache.drawn(size, seed=seed, step=step)[rank::world]
        latents, ids = self.cache.rows(indices)
        rngs = [random.Random(f"{seed}/{step}/{row}/distilled") for row in range(size)[rank::world]]
        generators = [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs]
        mean, std = config.time_mean, config.time_std
        times = [logit_normal_times(1, mean=mean, std=std, generator=generator) for generator in generators]
        quantizer = self.tokenizer.quantizer
        return DistillBatch(
            latents=latents,
            images=self.cache.pictures(indices),
            noise=torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]),
            ids=torch.stack([spoilt(row, quantizer, config.codes, rng) for row, rng in zip(ids, rngs, strict=True)]),
            time=torch.cat(times),
            parts=torch.tensor([[rng.randrange(number) for number in FEW_STEPS] for rng in rngs]),
        )

    def loss(self, batch: DistillBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the errors of mean velocities, of the velocity itself, and of the pixels at the end of steps."""
        self._follow(batch.noise.device)
        points = trajectory(lambda *state: self.teacher(*state, batch.ids), batch.noise, self.config.teacher_steps)
        steps, few = long_steps(points, FEW_STEPS, batch.parts), len(FEW_STEPS)
        noisy = torch.cat([steps.start, interpolate(batch.latents, batch.noise, batch.time)])
        times = torch.cat([steps.time, batch.time])
        spans = torch.cat([steps.span, torch.zeros_like(batch.time)])
        predicted = self.student(noisy, times, batch.ids.repeat(few + 1, 1, 1), spans).float()
        mean_velocity, velocity = predicted.split([len(steps.time), len(batch.time)])
        # Without all codes there is no telling which picture a step should end at.
        ends = steps.reach_the_picture & (batch.ids >= 0).all(dim=2).all(dim=1).repeat(few)
        losses = {
            "distilled": F.mse_loss(mean_velocity, steps.velocity),
            "matched": F.mse_loss(velocity, velocity_target(batch.latents, batch.noise)),
            "pixels": self._pixel_error(steps.end(mean_velocity), batch.images.repeat(few, 1, 1, 1), ends),
        }
        weights = {"distilled": 1.0, "matched": self.config.match_weight, "pixels": self.config.pixel_weight}
        return torch.stack([weights[name] * value for name, value in losses.items()]).sum(), losses

    def validate(self) -> dict[str, float]:
        """Returns how close held-out scenes painted in few steps come to the true ones, and to those of the teacher."""
        images, tokens = self._held_out(self.config.num_validation)
        device = next(self.student.parameters()).device
        shape = (len(images), self.student.config.latent_channels, *self.student.config.sizes[0])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        taught = self.teacher.render_latents(tokens.to(device), noise, steps=self.config.teacher_steps)
        measures = {}
        for steps in FEW_STEPS:
            painted = self.student.render_latents(tokens.to(device), noise, steps=steps)
            psnr = peak_signal_noise_ratio(decode_latents(self.vae, painted), images, data_range=1.0, dim=(1, 2, 3))
            measures[f"psnr_db_{steps}"] = psnr.item()
            measures[f"from_teacher_{steps}"] = F.mse_loss(painted, taught).item()
        return measures

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: true, painted by the teacher, and by the student in 1, 2 and 4 steps."""
        images, tokens = self._held_out(8)
        taught = DecoderPipeline(self.teacher, self.vae).render(tokens, steps=self.config.teacher_steps)
        painted = [self.pipeline.render(tokens, steps=steps) for steps in FEW_STEPS]
        sheet = rearrange(torch.stack([images, taught, *painted]), "row b c h w -> (row h) (b w) c")
        Image.fromarray((sheet * 255).round().byte().cpu().numpy()).save(folder / "distilled.png")

    def export(self, folder: Path) -> None:
        """Writes the student, a decoder like any other."""
        self.student.save(folder)

    def _pixel_error(
        self,
        latents: Float[Tensor, "rows channels height width"],
        images: Float[Tensor, "rows 3 height_px width_px"],
        shown: Bool[Tensor, " rows"],
    ) -> Float[Tensor, ""]:
        """Returns the mean absolute error of decoded latents, of no more rows than is worth it, evenly chosen."""
        rows = shown.nonzero()[:, 0]
        if not len(rows):
            return 0.0 * latents.sum()
        number = min(len(rows), self.config.num_pixel_rows)
        rows = rows[torch.linspace(0, len(rows) - 1, number, device=rows.device).round().long()]
        scale, shift = scale_and_shift(self.vae)
        return F.l1_loss(rebuild(self.vae, latents[rows] / scale + shift).float(), images[rows])

    def _held_out(self, number: int) -> tuple[Float[Tensor, "batch 3 height width"], Tokens]:
        """Returns held-out scenes on the student's device, to which the frozen models follow, and their codes."""
        scenes = scene_rows(self.held_out_scenes, number, seed=0, step=0)
        images = pictures_of(scenes, self.held_out_scenes.pack) / 255
        device = next(self.student.parameters()).device
        self._follow(device)
        return images.to(device), self.tokenizer.encode(images)

    def _follow(self, device: torch.device) -> None:
        nn.Module.to(self.vae, device)
        self.teacher.to(device)


def student_of(teacher: DiffusionDecoder) -> DiffusionDecoder:
    """Returns a flow map that paints as the teacher does, until it learns.

    Raises:
        ValueError: if the teacher is a flow map itself, or what it paints is not all in its codes and one size.
    """
    config = teacher.config
    if config.flow_map:
        raise ValueError("decoder must be one that gives the velocity at a time, got a flow map")
    if len(config.sizes) > 1 or config.time_shift != 1 or config.text is not None:
        raise ValueError(f"decoder must paint one size, its times not shifted, and read no text, got {config}")
    student = replace(teacher.config, flow_map=True).build(teacher.layout, teacher.tokenizer_hash)
    fresh = student.load_state_dict(teacher.state_dict(), strict=False).missing_keys
    assert all(name.startswith("embed_span.") for name in fresh)
    return student


def mini() -> DistillConfig:
    """The shipped decoder: at 4 steps its teacher paints as well as at 25, and a trajectory costs a sixth."""
    return DistillConfig(
        run=RunConfig(
            output=Path("runs/distilled"), steps=1500, batch_size=16, ema=0.995, validate_every=500, save_every=100
        ),
        optim=OptimConfig(lr=3e-4, warmup_steps=50, cooldown_fraction=0.5, weight_decay=0.01),
        teacher_steps=4,
    )


def tiny() -> DistillConfig:
    """A distillation of seconds, for tests."""
    return DistillConfig(
        run=RunConfig(output=Path("runs/distilled_tiny"), steps=60, batch_size=8, dtype="float32"),
        optim=OptimConfig(lr=3e-3, warmup_steps=5),
        cache=LatentCacheConfig(file=Path("runs/latents_tiny.safetensors"), num_scenes=64),
        num_pixel_rows=2,
        num_validation=8,
    )


PRESETS = {"mini": mini, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Distills a decoder as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("distill_decoder", lambda: DistillStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
