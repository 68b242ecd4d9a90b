"""Trains the image tokenizer on composed scenes and their captions.

python -m rebus.train.tokenizer --preset mini --run.output runs/tokenizer
python -m rebus.train.tokenizer --preset mini_nested --run.output runs/tokenizer_nested
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_regions import SceneRegions
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import caption
from rebus.data.scenes import Scene
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.supervision import Supervision, SupervisionConfig
from rebus.tokenizers.text_tokenizer import SentencePieceTokenizer
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.loop import launch


@dataclass(frozen=True, kw_only=True)
class TokenizerStageConfig:
    """A whole training of an image tokenizer."""

    run: RunConfig
    """Steps, batch size, folders."""
    optim: OptimConfig
    """Learning rate and its course."""
    tokenizer: ImageTokenizerConfig = ImageTokenizerConfig()
    """The model."""
    supervision: SupervisionConfig = SupervisionConfig()
    """What its codes are taught."""
    num_text_pieces: int = 600
    """Vocabulary of the text models that teach the codes; they are not kept."""
    num_texts: int = 20_000
    """Captions from which that vocabulary is learned."""
    caption_length: int = 32
    """Pieces of a caption that are read; longer ones are cut."""
    num_validation: int = 256
    """Held-out scenes looked at by a validation."""


@dataclass(frozen=True, eq=False)
class TokenizerBatch:
    """Pictures, how many of their positions count, and their captions."""

    images: Float[Tensor, "batch 3 height width"]
    """In [0, 1]."""
    lengths: Int[Tensor, " batch"] | None
    """Positions kept of each picture; None if the layout draws none."""
    captions: Int[Tensor, "batch length"]
    """Pieces, padded."""
    regions: Int[Tensor, "batch cells"]
    """What each cell shows, see `SceneRegions`."""


class TaughtTokenizer(nn.Module):
    """An image tokenizer with the models that teach it: everything that trains in this stage."""

    def __init__(self, tokenizer: ImageTokenizer, supervision: Supervision) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.supervision = supervision

    def forward(self, batch: TokenizerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its terms."""
        coded = self.tokenizer.quantize(batch.images, batch.lengths)
        rebuilt = self.tokenizer.paint(coded)
        taught = self.supervision(
            batch.images, rebuilt, coded.features, coded.features_mask, batch.captions, batch.regions
        )
        losses = taught | coded.losses
        terms = {name: value.detach() for name, value in losses.items()} | coded.stats
        return torch.stack(list(losses.values())).sum(), terms


class TokenizerStage:
    """Scenes and captions in, rebuilt pictures and told captions out."""

    def __init__(self, config: TokenizerStageConfig, pack: EmojiPack) -> None:
        self.config, self.pack = config, pack
        self.train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        texts = (
            caption(self.train_scenes.scene(rng := random.Random(row)), rng, pack) for row in range(config.num_texts)
        )
        self.text_tokenizer = SentencePieceTokenizer.train(texts, config.num_text_pieces)
        self.parts = {"text_tokenizer": self.text_tokenizer.hash}
        torch.manual_seed(config.run.seed)
        tokenizer = config.tokenizer.build()
        self.regions = SceneRegions(mini_concepts(pack))
        supervision = config.supervision.build(
            num_pieces=self.text_tokenizer.num_pieces,
            pad=self.text_tokenizer.special.pad,
            num_names=self.regions.num_names,
            canvas=tokenizer.canvas,
        )
        self.model: nn.Module = TaughtTokenizer(tokenizer, supervision)

    def batch(self, step: int, rank: int, world: int) -> TokenizerBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        seed, size = self.config.run.seed, self.config.run.batch_size
        scenes = scene_rows(self.train_scenes, size, seed=seed, step=step, rank=rank, world=world)
        rows = range(size)[rank::world]
        texts = [
            caption(scene, random.Random(f"{seed}/{step}/{row}/text"), self.pack)
            for scene, row in zip(scenes, rows, strict=True)
        ]
        generator = torch.Generator().manual_seed(random.Random(f"{seed}/{step}/lengths").getrandbits(63))
        lengths = self._tokenizer().positions.draw_lengths(size, generator)
        lengths = None if lengths is None else lengths[rank::world]
        regions = torch.stack([self.regions.cells(scene) for scene in scenes])
        return TokenizerBatch(pictures_of(scenes, self.pack) / 255, lengths, self._pieces(texts), regions)

    def loss(self, batch: TokenizerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of the weighted terms, and each of them."""
        return self.model(batch)

    def validate(self) -> dict[str, float]:
        """Returns what rebuilt held-out scenes look like beside the true ones, and how many codes they use."""
        images = self._held_out(self.config.num_validation)
        tokenizer = self._tokenizer()
        tokens = tokenizer.encode(images)
        psnr = peak_signal_noise_ratio(tokenizer.decode(tokens), images, data_range=1.0, dim=(1, 2, 3))
        return {"psnr_db": psnr.item(), "codes_in_use": float(tokens.ids.unique().numel())}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: above the true one, below it the rebuilt one."""
        images = self._held_out(8)
        tokenizer = self._tokenizer()
        rows = torch.stack([images, tokenizer.decode(tokenizer.encode(images))])
        sheet = (rearrange(rows, "row b c h w -> (row h) (b w) c") * 255).round().byte()
        Image.fromarray(sheet.numpy()).save(folder / "rebuilt.png")

    def export(self, folder: Path) -> None:
        """Writes the tokenizer without its teachers."""
        self._tokenizer().save(folder)

    def _tokenizer(self) -> ImageTokenizer:
        assert isinstance(self.model, TaughtTokenizer)
        return self.model.tokenizer

    def _held_out(self, number: int) -> Float[Tensor, "batch 3 height width"]:
        scenes: list[Scene] = scene_rows(self.held_out_scenes, number, seed=0, step=0)
        return pictures_of(scenes, self.pack) / 255

    def _pieces(self, texts: list[str]) -> Int[Tensor, "batch length"]:
        length, text = self.config.caption_length, self.text_tokenizer
        rows = [[text.special.bos, *text.encode(caption), text.special.eos][:length] for caption in texts]
        return torch.tensor([row + [text.special.pad] * (length - len(row)) for row in rows])


def mini() -> TokenizerStageConfig:
    """The shipped tokenizer: 64 codes on a grid, one or two cores, 28 minutes."""
    return TokenizerStageConfig(
        run=RunConfig(output=Path("runs/tokenizer"), steps=7000, batch_size=16, compile=True, validate_every=1000),
        optim=OptimConfig(lr=6e-4, warmup_steps=100, cooldown_fraction=0.7, weight_decay=0.02),
        tokenizer=ImageTokenizerConfig(
            encoder=VitEncoderConfig(dim=192, depth=3, num_heads=3),
            quantizer=VectorConfig(codebook_size=4096, dim=64, commitment=1.0),
            pixel_decoder=VitPixelDecoderConfig(dim=192, depth=4, num_heads=3),
        ),
    )


def mini_scalar() -> TokenizerStageConfig:
    """As mini, with rounded channels instead of a code book."""
    config = mini()
    return replace(config, tokenizer=replace(config.tokenizer, quantizer=FiniteScalarConfig()))


def mini_nested() -> TokenizerStageConfig:
    """As mini, with nested causal queries of which any prefix decodes."""
    config = mini()
    tokenizer = replace(config.tokenizer, layout=NestedQueriesConfig(num_heads=3))
    return replace(config, tokenizer=tokenizer, supervision=replace(config.supervision, region=0.0))


def tiny() -> TokenizerStageConfig:
    """A training of seconds, for tests."""
    return TokenizerStageConfig(
        run=RunConfig(output=Path("runs/tokenizer_tiny"), steps=60, batch_size=8, dtype="float32"),
        optim=OptimConfig(lr=3e-3, warmup_steps=5),
        tokenizer=ImageTokenizerConfig(
            encoder=VitEncoderConfig(dim=32, depth=1, num_heads=2),
            pixel_decoder=VitPixelDecoderConfig(dim=32, depth=1, num_heads=2),
        ),
        supervision=SupervisionConfig(text_dim=64, text_depth=1),
        num_text_pieces=420,
        num_texts=500,
        num_validation=8,
    )


PRESETS = {"mini": mini, "mini_scalar": mini_scalar, "mini_nested": mini_nested, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Trains an image tokenizer as the command line says."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("tokenizer", lambda: TokenizerStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
