"""Trains the adapter of an unCLIP decoder: codes of a frozen image tokenizer to the embedding that CLIP has.

Run: ``python -m rebus.train.image_embedding --base FOLDER --image_tokenizer runs/tokenizer/export``

FOLDER is a pipeline of Stable Diffusion 2.1 unCLIP as the Hub holds it. Its UNet has no part in the training.
"""

import random
from dataclasses import dataclass
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
from rebus.model.borrowed_decoders.latents import resized
from rebus.model.borrowed_decoders.unclip import UnclipConfig
from rebus.model.saved import file_hash
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.imperfect_codes import ImperfectCodesConfig, spoilt
from rebus.train.loop import launch

SHOWN_STEPS, SHOWN_GUIDANCE = 20, 10.0
"""How the row of painted scenes in the sample sheet is painted: as in SEED."""


@dataclass(frozen=True, kw_only=True)
class ImageEmbeddingStageConfig:
    """A whole training of an adapter."""

    run: RunConfig
    """Steps, batch size, folders; a row of a batch is one picture."""
    optim: OptimConfig
    """Learning rate and its course."""
    base: Path = Path("runs/base")
    """Folder of a pipeline of diffusers."""
    image_tokenizer: Path = Path("runs/tokenizer/export")
    """Folder of the trained image tokenizer."""
    family: UnclipConfig = UnclipConfig()
    """How codes become an embedding."""
    base_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of the UNet's weights."""
    codes: ImperfectCodesConfig = ImperfectCodesConfig(dropped=0.0)
    """How the codes are spoilt in training; without any there is no embedding to tell."""
    num_validation: int = 64
    """Held-out scenes looked at by a validation."""


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Codes and the embeddings of their pictures."""

    ids: Int[Tensor, "batch positions streams"]
    embeddings: Float[Tensor, "batch embedding"]


class ImageEmbeddingStage:
    """Scenes through two frozen encoders in, embeddings out."""

    def __init__(self, config: ImageEmbeddingStageConfig, pack: EmojiPack) -> None:
        # diffusers takes seconds to import, which --help need not wait for.
        from rebus.model.borrowed_decoders.adapter import CodeAdapter
        from rebus.model.borrowed_decoders.unclip_parts import ENCODER_WEIGHTS, read_encoder, take_over_parts
        from rebus.model.borrowed_decoders.weights import load_base

        self.config, self.pack = config, pack
        self.train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        self.tokenizer = ImageTokenizer.load(config.image_tokenizer).requires_grad_(False)
        self.encoder = read_encoder(config.base)
        self.base = load_base(config.base, config.family, getattr(torch, config.base_dtype))
        encoder_hash = file_hash(config.base / ENCODER_WEIGHTS)[:16]
        self.parts = {"image_tokenizer": self.tokenizer.hash, "image_encoder": encoder_hash}
        torch.manual_seed(config.run.seed)
        self.adapter = CodeAdapter.of(self.base.family, self.tokenizer)
        self.head: Any = self.adapter.head
        take_over_parts(self.head, config.base)
        self.model: nn.Module = self.adapter

    def batch(self, step: int, rank: int, world: int) -> EmbeddingBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        config, seed, size = self.config, self.config.run.seed, self.config.run.batch_size
        images = self._pictures(scene_rows(self.train_scenes, size, seed=seed, step=step, rank=rank, world=world))
        rngs = [random.Random(f"{seed}/{step}/{row}/codes") for row in range(size)[rank::world]]
        ids, quantizer = self._coded(images), self.tokenizer.quantizer
        rows = [spoilt(row, quantizer, config.codes, rng) for row, rng in zip(ids, rngs, strict=True)]
        return EmbeddingBatch(torch.stack(rows), self.encoder(images))

    def loss(self, batch: EmbeddingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean squared error of the embedding, and how much it looks the same way as the true one."""
        told = self.head.embedding(self.adapter.features(batch.ids)).float()
        cosine = F.cosine_similarity(told, batch.embeddings).mean()
        return F.mse_loss(told, batch.embeddings), {"cosine": cosine.detach()}

    def validate(self) -> dict[str, float]:
        """Returns error and cosine on held-out scenes."""
        images = self._pictures(scene_rows(self.held_out_scenes, self.config.num_validation, seed=0, step=0))
        loss, metrics = self.loss(EmbeddingBatch(self._coded(images), self.encoder(images)))
        return {"mse": loss.item(), "cosine": metrics["cosine"].item()}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: above the true one, below it what is painted from its codes."""
        images = self._pictures(scene_rows(self.held_out_scenes, 4, seed=0, step=0))
        pipeline = self._pipeline()
        pipeline.set_progress_bar_config(disable=True)
        painted = pipeline(
            self._coded(images),
            num_inference_steps=SHOWN_STEPS,
            guidance_scale=SHOWN_GUIDANCE,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        rows = torch.stack([resized(images, self.config.family.size_px), painted.images])
        sheet = rearrange(rows, "row b c h w -> (row h) (b w) c")
        Image.fromarray((sheet * 255).round().byte().cpu().numpy()).save(folder / "painted.png")

    def export(self, folder: Path) -> None:
        """Writes a pipeline of diffusers with all of its parts, the UNet as it was."""
        self._pipeline().save_pretrained(folder)

    def _pipeline(self) -> Any:
        from rebus.model.borrowed_decoders.pipeline import BorrowedDecoderPipeline

        pipeline = BorrowedDecoderPipeline(self.adapter, self.base.model, self.base.vae, self.base.scheduler)
        return pipeline.to(self.adapter.device)

    def _coded(self, images: Float[Tensor, "batch 3 height width"]) -> Int[Tensor, "batch positions streams"]:
        return self.adapter.ids(self.tokenizer.encode(resized(images, self.tokenizer.config.sizes_px[0])))

    def _pictures(self, scenes: list[Scene]) -> Float[Tensor, "batch 3 height width"]:
        """Returns drawn scenes on the adapter's device, to which the frozen models follow."""
        device = self.adapter.device
        self.encoder.model.to(device)
        self.tokenizer.to(device)
        return pictures_of(scenes, self.pack).to(device) / 255


def unclip() -> ImageEmbeddingStageConfig:
    """Stable Diffusion 2.1 unCLIP, as SEED-2 and Slot-MLLM."""
    return ImageEmbeddingStageConfig(
        run=RunConfig(output=Path("runs/image_embedding"), steps=20_000, batch_size=256, ema=0.999),
        optim=OptimConfig(lr=1e-4, warmup_steps=500, weight_decay=0.01),
    )


PRESETS = {"unclip": unclip}


def main(argv: list[str] | None = None) -> None:
    """Trains the adapter of an unCLIP decoder as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("image_embedding", lambda: ImageEmbeddingStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
