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
from rebus.data.scene_text import caption
from rebus.data.scenes import SCENE_SIZE_PX, Scene
from rebus.model.code_condition import GridConditionConfig
from rebus.model.decoder import DecoderConfig
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.flow import interpolate, logit_normal_times, shifted, velocity_target
from rebus.model.grid_places import listed
from rebus.model.saved import WEIGHTS, file_hash
from rebus.model.vae import decode_latents, downsampling, encode_latents, load_vae
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import Grid
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.decoder_start import start_from
from rebus.train.decoder_text import learn_pieces, told_pieces
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
    start: Path | None = None
    """Folder of a trained decoder whose weights it starts with, such as that of smaller pictures; by default fresh."""
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
    num_texts: int = 20_000
    """Captions from which the vocabulary of a decoder that reads a text is learned."""
    num_validation: int = 64
    """Held-out scenes looked at by a validation."""

    def __post_init__(self) -> None:
        if self.noises_per_picture < 1 or self.run.batch_size % self.noises_per_picture:
            wanted, got = f"a divisor of run.batch_size = {self.run.batch_size}", self.noises_per_picture
            raise ValueError(f"noises_per_picture must be {wanted}, got {got}")


@dataclass(frozen=True, eq=False)
class DecoderBatch:
    """Latents, the noise and time that spoil them, codes, and a text if the decoder reads one."""

    latents: Float[Tensor, "batch channels height width"]
    noise: Float[Tensor, "batch channels height width"]
    time: Float[Tensor, " batch"]
    ids: Int[Tensor, "batch positions streams"]
    text: Int[Tensor, "batch pieces"] | None = None


class DecoderStage:
    """Scenes through two frozen encoders in, velocities out."""

    def __init__(self, config: DecoderStageConfig, pack: EmojiPack) -> None:
        self.config, self.pack = config, pack
        self.train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        self.vae = load_vae(config.vae)
        self.tokenizer = ImageTokenizer.load(config.image_tokenizer).requires_grad_(False)
        vae_hash = file_hash(config.vae / Path(WEIGHTS["vae"]).name)[:16]
        self.tokenizer.layout.check_one_size("this stage")
        self.scales = {size: self._scale(size) for size in config.decoder.sizes}
        self.parts = {"image_tokenizer": self.tokenizer.hash, "vae": vae_hash}
        torch.manual_seed(config.run.seed)
        self.decoder = config.decoder.build(self.tokenizer.layout, self.tokenizer.hash)
        if self.decoder.text is not None:
            learn_pieces(self.decoder.text, self.train_scenes, config.num_texts)
        self.model: nn.Module = self.decoder
        self.pipeline = DecoderPipeline(self.decoder, self.vae)
        if config.cache is not None and len(self.scales) > 1:
            raise ValueError(f"cache must be none for several sizes, got latents of {listed(config.decoder.sizes)}")
        made = (self.train_scenes, self.vae, vae_hash, self.tokenizer, max(self.scales.values()))
        self.cache = None if config.cache is None else open_cache(config.cache, *made)
        size, parts = config.decoder.sizes[0], self.decoder.patches_per_side
        if config.start is not None:
            trained = start_from(self.decoder, config.start)
            if trained.patches_per_side < parts:  # its codes know what a whole cell looks like
                whole_cells = self._mean_latents(trained.config.sizes[0], trained.patches_per_side)
                self.decoder.embed_codes.move(self._mean_latents(size, parts) - whole_cells)
        elif isinstance(config.decoder.condition, GridConditionConfig):
            self.decoder.embed_codes.place(self._mean_latents(size, parts))

    def batch(self, step: int, rank: int, world: int) -> DecoderBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        config, seed, copies = self.config, self.config.run.seed, self.config.noises_per_picture
        num_pictures, size = config.run.batch_size // copies, config.decoder.sizes[step % len(config.decoder.sizes)]
        scenes, (latents, ids) = self._encoded(num_pictures, size, step, rank, world)
        rows = [(row, copy) for row in range(num_pictures)[rank::world] for copy in range(copies)]
        rngs = [random.Random(f"{seed}/{step}/{row}/{copy}/noise") for row, copy in rows]
        generators = [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs]
        noise = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
        mean, std = config.time_mean, config.time_std
        times = [logit_normal_times(1, mean=mean, std=std, generator=generator) for generator in generators]
        told = [scene for scene in scenes for _ in range(copies)]
        seeds = [f"{seed}/{step}/{row}/{copy}/text" for row, copy in rows]
        quantizer, ids = self.tokenizer.quantizer, ids.repeat_interleave(copies, dim=0)
        return DecoderBatch(
            latents.repeat_interleave(copies, dim=0),
            torch.stack(noise).to(latents.device),
            shifted(torch.cat(times), self.decoder.time_shift(size)).to(latents.device),
            torch.stack([spoilt(row, quantizer, config.codes, rng) for row, rng in zip(ids, rngs, strict=True)]),
            self.decoder.text and told_pieces(self.decoder.text, told, self.train_scenes, seeds),
        )

    def loss(self, batch: DecoderBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean squared error of the velocity."""
        noisy = interpolate(batch.latents, batch.noise, batch.time)
        velocity = self.decoder(noisy, batch.time, batch.ids, text=batch.text).float()
        return F.mse_loss(velocity, velocity_target(batch.latents, batch.noise)), {}

    def validate(self) -> dict[str, float]:
        """Returns the velocity's error on held-out scenes, and how close those painted in 4 steps come to the true."""
        shown, images, texts = self._held_out(self.config.num_validation)
        latents, tokens = encode_latents(self.vae, images), self.tokenizer.encode(shown)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        # Evenly spread times have less luck in them than drawn ones.
        time = (torch.arange(len(latents), device=latents.device) + 0.5) / len(latents)
        ids, text = self.decoder.whole_ids(tokens), self.decoder.text_ids(texts, len(images))
        loss, _ = self.loss(DecoderBatch(latents, noise, time, ids, text))
        painted = self.pipeline.render(tokens, text=texts, steps=4)
        psnr = peak_signal_noise_ratio(painted, images, data_range=1.0, dim=(1, 2, 3))
        return {"velocity_mse": loss.item(), "psnr_db": psnr.item()}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: true, rebuilt by the auto-encoder, painted in 1, 4 and 25 steps."""
        shown, images, texts = self._held_out(8)
        tokens = self.tokenizer.encode(shown)
        painted = [self.pipeline.render(tokens, text=texts, steps=steps) for steps in SHOWN_STEPS]
        rows = torch.stack([images, decode_latents(self.vae, encode_latents(self.vae, images)), *painted])
        sheet = (rearrange(rows, "row b c h w -> (row h) (b w) c") * 255).round().byte()
        Image.fromarray(sheet.cpu().numpy()).save(folder / "painted.png")

    def export(self, folder: Path) -> None:
        """Writes the decoder, without the frozen models."""
        self.decoder.save(folder)

    def _mean_latents(self, usual: Grid, parts: int) -> Float[Tensor, "codes parts values"]:
        """Returns the mean patch of latents where each code of stream 0 stands; that of all codes for one never met.

        Args:
            usual: size of the latents.
            parts: how many patches along each side of a code's cell are told apart.
        """
        patch, layout = self.config.decoder.patch, self.tokenizer.layout
        grid, size = layout.grid, layout.streams[0].size
        assert grid is not None
        finest = max(grid, (usual[0] // patch, usual[1] // patch))
        pairs, cells = [], (finest[0] // parts, finest[1] // parts)
        for step in range(math.ceil(self.config.num_start_pictures / _START_BATCH)):
            scenes = scene_rows(self.train_scenes, _START_BATCH, seed=self.config.run.seed, step=step)
            shown, images = self._pictures(scenes, usual)
            latents = encode_latents(self.vae, images).cpu()
            patches = rearrange(latents, "b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch)
            patches = F.interpolate(patches, finest)
            patches = rearrange(patches, "b values (h i) (w j) -> (b h w) (i j) values", i=parts, j=parts)
            ids = rearrange(self.tokenizer.encode(shown).ids[..., 0].cpu(), "b (h w) -> b 1 h w", h=grid[0])
            pairs.append((F.interpolate(ids.double(), cells).long().flatten(), patches))
        ids, patches = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        counts = torch.bincount(ids, minlength=size)[:, None, None]
        sums = torch.zeros(size, *patches.shape[1:]).index_add_(0, ids, patches)
        return torch.where(counts > 0, sums / counts.clamp_min(1), patches.mean(dim=0))

    def _encoded(self, num_pictures: int, size: Grid, step: int, rank: int, world: int) -> tuple[list[Scene], Encoded]:
        """Returns this rank's rows of so many scenes of a step, with latents of a size and codes, cached or fresh."""
        seed, device = self.config.run.seed, next(self.decoder.parameters()).device
        if self.cache is not None:
            self.tokenizer.to(device)  # whose quantizer makes codes wrong
            indices = self.cache.drawn(num_pictures, seed=seed, step=step)[rank::world]
            return self.cache.scenes(indices), Encoded(*(part.to(device) for part in self.cache.rows(indices)))
        scenes = scene_rows(self.train_scenes, num_pictures, seed=seed, step=step, rank=rank, world=world)
        shown, images = self._pictures(scenes, size)
        with autocast(self.config.run, device):
            latents = encode_latents(self.vae, images).float()
        return scenes, Encoded(latents, self.decoder.whole_ids(self.tokenizer.encode(shown)))

    def _held_out(self, number: int) -> tuple[Tensor, Tensor, list[str] | None]:
        """Returns scenes as the tokenizer sees them, as large as they are usually painted, and captions if read."""
        scenes = scene_rows(self.held_out_scenes, number, seed=0, step=0)
        texts = None
        if self.decoder.text is not None:
            texts = [caption(scene, random.Random(f"held out/{row}"), self.pack) for row, scene in enumerate(scenes)]
        return *self._pictures(scenes, self.config.decoder.sizes[0]), texts

    def _pictures(self, scenes: list[Scene], size: Grid) -> tuple[Tensor, Tensor]:
        """Returns scenes as the tokenizer sees them, and as large as pictures of so many latents.

        They are on the decoder's device, to which the frozen models follow.
        """
        device = next(self.decoder.parameters()).device
        nn.Module.to(self.vae, device)
        self.tokenizer.to(device)
        larger = self._scale(size)
        drawn = {scale: pictures_of(scenes, self.pack, scale).to(device) / 255 for scale in {1, larger}}
        return drawn[1], drawn[larger]

    def _scale(self, size: Grid) -> int:
        """Returns how many times as large as a scene pictures of so many latents are."""
        rows_px, columns_px = (side * downsampling(self.vae) for side in size)
        if rows_px != columns_px or rows_px % SCENE_SIZE_PX:
            wanted = f"a whole number of times {SCENE_SIZE_PX} x {SCENE_SIZE_PX} px"
            raise ValueError(f"latent_size must stand for {wanted}, got {rows_px} x {columns_px}")
        return rows_px // SCENE_SIZE_PX


def mini() -> DecoderStageConfig:
    """The shipped decoder: 64 patches of the latents of 128 px scenes, one core, 40 minutes."""
    return DecoderStageConfig(
        run=RunConfig(output=Path("runs/decoder"), steps=3600, batch_size=32, ema=0.999, validate_every=900),
        optim=OptimConfig(lr=1e-3, warmup_steps=200, cooldown_fraction=0.3, weight_decay=0.01),
        decoder=DecoderConfig(depth=6),
    )


def mini_256() -> DecoderStageConfig:
    """A decoder that paints 256 px from the codes of 128 px pictures: four patches to a code, four times the work.

    It learns from scratch, or from a decoder of 128 px with ``--start``.
    """
    config = mini()
    parts = {"latent_size": (64, 64), "time_shift": 2.0, "condition": GridConditionConfig(per_patch=True)}
    decoder = replace(config.decoder, **parts)
    return replace(config, run=replace(config.run, output=Path("runs/decoder_256")), decoder=decoder)


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


PRESETS = {"mini": mini, "mini_256": mini_256, "compared": compared, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Trains a diffusion decoder as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("decoder", lambda: DecoderStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
