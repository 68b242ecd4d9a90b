"""The training of an image tokenizer on composed scenes and their captions: what it needs, its data and its looks."""

import random
from dataclasses import dataclass
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
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.supervision.supervision import SupervisionConfig
from rebus.tokenizers.supervision.taps import layer_widths
from rebus.tokenizers.text_tokenizer import SentencePieceTokenizer, TextTokenizer
from rebus.tokenizers.tokens import Tokens
from rebus.train.code_perturbation import CodePerturbationConfig
from rebus.train.config import OptimConfig, RunConfig
from rebus.train.joint_decoder import JointDecoderConfig
from rebus.train.taught_tokenizer import TaughtTokenizer, TokenizerBatch


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
    perturbation: CodePerturbationConfig | None = None
    """Wrong codes that the pixel decoder has to live with; none by default."""
    joint: JointDecoderConfig | None = None
    """A diffusion decoder that learns with the tokenizer and teaches it; without one, ``rebus.train.decoder`` trains
    it on the codes afterwards."""
    num_text_pieces: int = 600
    """Vocabulary of the text models that teach the codes; they are not kept. A language model brings its own."""
    num_texts: int = 20_000
    """Captions from which that vocabulary is learned."""
    caption_length: int = 32
    """Pieces of a caption that are read; longer ones are cut."""
    num_validation: int = 256
    """Held-out scenes looked at by a validation."""


class TokenizerStage:
    """Scenes and captions in, rebuilt pictures and told captions out."""

    def __init__(self, config: TokenizerStageConfig, pack: EmojiPack) -> None:
        self.config, self.pack = config, pack
        self.train_scenes = SceneSampler(pack, mini_concepts(pack), "train")
        self.held_out_scenes = SceneSampler(pack, mini_concepts(pack), "held_out")
        self.text_tokenizer = self._text_tokenizer()
        self.parts = {"text_tokenizer": self.text_tokenizer.hash}
        torch.manual_seed(config.run.seed)
        tokenizer = config.tokenizer.build()
        if tokenizer.text is not None:
            tokenizer.text.pieces = self._pieces_to_keep(tokenizer.text.config.num_pieces)
        self.regions = SceneRegions(mini_concepts(pack))
        supervision = config.supervision.build(
            num_pieces=self.text_tokenizer.num_pieces,
            pad=self.text_tokenizer.special.pad,
            num_names=self.regions.num_names,
            canvas=tokenizer.canvas,
            widths=layer_widths(tokenizer, layers) if (layers := config.supervision.layers) else {},
        )
        self.joint = config.joint and config.joint.build(tokenizer)
        if self.joint is not None:
            supervision = supervision.beside("joint", self.joint)
        self.model: nn.Module = TaughtTokenizer(tokenizer, supervision, config.perturbation)

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
        layout = self._tokenizer().positions
        drawn = layout.draw_lengths(size, generator), layout.draw_noise(size, generator)
        lengths, noise = (None if numbers is None else numbers[rank::world] for numbers in drawn)
        regions = torch.stack([self.regions.cells(scene) for scene in scenes])
        seeds = [random.Random(f"{seed}/{step}/{row}/codes").getrandbits(63) for row in rows]
        return TokenizerBatch(
            images=pictures_of(scenes, self.pack) / 255,
            lengths=lengths,
            noise=noise,
            captions=self._pieces(texts),
            text=self._text(texts, f"{seed}/{step}/{rank}/dropped"),
            regions=regions,
            step=step,
            seeds=torch.tensor(seeds),
        )

    def loss(self, batch: TokenizerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of the weighted terms, and each of them."""
        return self.model(batch)

    def validate(self) -> dict[str, float]:
        """Returns what rebuilt held-out scenes look like beside the true ones, and how many codes they use."""
        images, texts = self._held_out(self.config.num_validation)
        tokens, rebuilt = self._rebuilt(images, texts)
        psnr = peak_signal_noise_ratio(rebuilt, images, data_range=1.0, dim=(1, 2, 3))
        return {"psnr_db": psnr.item(), "codes_in_use": float(tokens.ids.unique().numel())}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of held-out scenes: above the true one, below it the rebuilt one."""
        images, texts = self._held_out(8)
        rows = torch.stack([images, self._rebuilt(images, texts)[1]])
        sheet = (rearrange(rows, "row b c h w -> (row h) (b w) c") * 255).round().byte()
        Image.fromarray(sheet.cpu().numpy()).save(folder / "rebuilt.png")

    def export(self, folder: Path) -> None:
        """Writes the tokenizer without its teachers, and in ``decoder`` the decoder that has learned with it."""
        tokenizer = self._tokenizer()
        tokenizer.save(folder)
        if self.joint is not None:
            self.joint.trained(tokenizer).save(folder / "decoder")

    def _text_tokenizer(self) -> TextTokenizer:
        """Returns that of the language model that reads the captions, if there is one, else one learned from them."""
        teacher = self.config.supervision.language_caption
        if teacher is not None and teacher.weight:
            return TextTokenizer.load(teacher.path)
        rows = range(self.config.num_texts)
        texts = (caption(self.train_scenes.scene(rng := random.Random(row)), rng, self.pack) for row in rows)
        return SentencePieceTokenizer.train(texts, self.config.num_text_pieces)

    def _tokenizer(self) -> ImageTokenizer:
        assert isinstance(self.model, TaughtTokenizer)
        return self.model.tokenizer

    def _held_out(self, number: int) -> tuple[Float[Tensor, "batch 3 height width"], list[str]]:
        scenes: list[Scene] = scene_rows(self.held_out_scenes, number, seed=0, step=0)
        texts = [caption(scene, random.Random(f"held out/{row}"), self.pack) for row, scene in enumerate(scenes)]
        return pictures_of(scenes, self.pack).to(next(self.model.parameters()).device) / 255, texts

    def _rebuilt(
        self, images: Float[Tensor, "batch 3 height width"], texts: list[str]
    ) -> tuple[Tokens, Float[Tensor, "batch 3 height width"]]:
        """Returns codes of pictures and what is painted from them, in the arithmetic of weights that may be rounded."""
        tokenizer, weight = self._tokenizer(), next(self.model.parameters())
        text = None if tokenizer.text is None else texts
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
            tokens = tokenizer.encode(images, text=text)
            return tokens, tokenizer.decode(tokens, text=text)

    def _pieces_to_keep(self, number: int) -> SentencePieceTokenizer:
        """Returns the vocabulary of captions for a tokenizer that reads a text itself."""
        if not isinstance(self.text_tokenizer, SentencePieceTokenizer) or self.text_tokenizer.num_pieces != number:
            got = self.text_tokenizer.num_pieces
            raise ValueError(f"tokenizer.text.num_pieces must be num_text_pieces, and of no language model, got {got}")
        return self.text_tokenizer

    def _text(self, texts: list[str], seed: str) -> Int[Tensor, "batch pieces"] | None:
        """Returns what a tokenizer that reads a text is given; for some pictures nothing."""
        text = self._tokenizer().text
        if text is None:
            return None
        rng = random.Random(seed)
        return text.ids(["" if rng.random() < text.config.drop_rate else one for one in texts])

    def _pieces(self, texts: list[str]) -> Int[Tensor, "batch length"]:
        length, text = self.config.caption_length, self.text_tokenizer
        rows = [[text.special.bos, *text.encode(caption), text.special.eos][:length] for caption in texts]
        return torch.tensor([row + [text.special.pad] * (length - len(row)) for row in rows])
