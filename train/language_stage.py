"""What pretraining and supervised finetuning share: packed samples in, a saved language model out."""

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from rebus.data.emoji import EmojiPack
from rebus.data.loading import PackedLoader
from rebus.data.mini_concepts import mini_concepts, other_concepts
from rebus.data.packing import PackedBatch
from rebus.data.prefetch import Prefetched
from rebus.data.rendering import render_prompt
from rebus.data.samples import Message, Sample
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import CHAT_WEIGHTS, SceneSamples
from rebus.data.scenes import SCENE_SIZE_PX, TASKS
from rebus.data.shard_loading import ShardLoader
from rebus.data.shards import Shards
from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.kept_drawing import keeping_loss
from rebus.model.language_model import DOCUMENT_ATTENTION, LanguageBatch, language_batch, loss
from rebus.model.levels import level_batch
from rebus.model.trained_weights import ALL_WEIGHTS, TrainingChoice
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import SentencePieceTokenizer, TextTokenizer
from rebus.tokenizers.tokens import Tokens
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.config import RunConfig
from rebus.train.named_state import frozen_hash

NUM_VALIDATION_BATCHES = 4
MAX_VALIDATION_ROWS = 16
"""Every process reads all rows of a validation at once: those of a step of many processes would not fit into one."""
_CAPITALS = re.compile("[A-Z]{2,}")


def held_out_captions(held_out: SceneSamples) -> list[str]:
    """Returns what the sheets of samples show: a held-out scene of each task, as its canonical caption."""
    return [held_out.prompt(random.Random(f"sheet/{task}"), task)[1] for task in TASKS]


def chat_prompts(held_out: SceneSamples, text_tokenizer: TextTokenizer, vocabulary: Vocabulary) -> list[list[int]]:
    """Returns the same as requests of a user, up to where the model answers."""
    requests = [(Message("user", (caption,)),) for caption in held_out_captions(held_out)]
    return [render_prompt(request, text_tokenizer, vocabulary) for request in requests]


def scene_samples(
    pack: EmojiPack, chats: Mapping[str, float] = MappingProxyType(CHAT_WEIGHTS)
) -> tuple[SceneSamples, SceneSamples]:
    """Returns the samples of training, with chats of these kinds, and those of held-out scenes."""
    concepts = mini_concepts(pack)
    others = SceneSampler(pack, other_concepts(pack), "train")
    train = SceneSamples(SceneSampler(pack, concepts, "train"), others, chats)
    return train, SceneSamples(SceneSampler(pack, concepts, "held_out"))


def train_text_tokenizer(samples: SceneSamples, num_pieces: int, num_samples: int) -> SentencePieceTokenizer:
    """Returns a tokenizer learned from the text of documents and chats, and from the labels and tags of the pack.

    No piece of it joins capitals, so that the word of a sign is spelled as it is drawn: letter by letter.
    """
    words = (word for concept in samples.pack.concepts.values() for word in (concept.label, *concept.tags))
    return SentencePieceTokenizer.train(itertools.chain(_texts(samples, num_samples), words), num_pieces)


def _texts(samples: SceneSamples, number: int) -> Iterator[str]:
    for index in range(number):
        make = samples.document if index % 2 else samples.chat
        for message in make(random.Random(f"text/{index}")).messages:
            yield from (_CAPITALS.sub(_spelled, part) for part in message.parts if isinstance(part, str))


def _spelled(word: re.Match[str]) -> str:
    return f" {' '.join(word[0])} "


class LanguageStage:
    """Samples in, next ids out."""

    def __init__(
        self,
        run: RunConfig,
        model: PreTrainedModel,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        make_samples: tuple[Callable[[random.Random], Sample], Callable[[random.Random], Sample]],
        row_length: int,
        prompts: list[list[int]],
        by_level: bool = False,
        shards: Mapping[str, float] = MappingProxyType({}),
        held_out_shards: Path | None = None,
        training: TrainingChoice = ALL_WEIGHTS,
        teacher: PreTrainedModel | None = None,
    ) -> None:
        """Takes a model and what feeds it.

        Args:
            run: batch size in rows, and the seed.
            model: a Llama or one like it, over the vocabulary of both tokenizers.
            text_tokenizer: saved with the model.
            image_tokenizer: frozen.
            make_samples: of the training, and held-out ones.
            row_length: ids of a row; whole samples are packed into it.
            prompts: ids after which the model draws a picture, to be looked at.
            by_level: whether it learns to draw a level of codes at once, too.
            shards: folders of shards to train on instead of the first samples, and how often each is drawn from.
            held_out_shards: folder of shards to validate on instead of the held-out samples.
            training: what of the model trains.
            teacher: a model of the same vocabulary whose way to draw is learned in place of the pictures.

        Raises:
            ValueError: if the model has another vocabulary than the tokenizers, or looks back less far than a row is
                long; if there are no levels to learn; if scenes have another size than the image tokenizer's pictures;
                or if shards are not whole or not of these tokenizers.
        """
        self.vocabulary = text_tokenizer.vocabulary(image_tokenizer.layout)
        if model.config.vocab_size != self.vocabulary.size:
            got = f"{model.config.vocab_size} in the model"
            raise ValueError(f"the model's vocabulary must have the tokenizers' {self.vocabulary.size} ids, got {got}")
        trained_with = getattr(model.config, "image_tokenizer_hash", image_tokenizer.hash)  # a fresh one has none
        if trained_with != image_tokenizer.hash:
            raise ValueError(f"image_tokenizer must be {trained_with}, as in pretraining, got {image_tokenizer.hash}")
        if by_level and not image_tokenizer.layout.levels:
            raise ValueError("by_level must be False for an image tokenizer without levels, got True")
        if image_tokenizer.image_size != SCENE_SIZE_PX and not (shards and held_out_shards):
            got = f"{image_tokenizer.image_size} px, where scenes have {SCENE_SIZE_PX}"
            raise ValueError(f"shards and held_out_shards must be given for an image tokenizer of {got}")
        window = getattr(model.config, "sliding_window", None)
        if window is not None and row_length > window:
            raise ValueError(f"row_length must be at most {window}, as far as the model looks back, got {row_length}")
        self.model, self.by_level = model, by_level
        self.trained = training.prepare(model, self.vocabulary, run.seed)
        attention = "sdpa" if by_level else DOCUMENT_ATTENTION
        self.model.set_attn_implementation(attention)
        self.text_tokenizer, self.image_tokenizer, self.prompts = text_tokenizer, image_tokenizer, prompts
        self.parts = {"image_tokenizer": image_tokenizer.hash, "text_tokenizer": text_tokenizer.hash}
        self.teacher = teacher
        if teacher is not None:
            teacher.eval().requires_grad_(False).set_attn_implementation(attention)
            frozen = frozen_hash(teacher)
            assert frozen is not None  # nothing of it trains
            self.parts["teacher"] = frozen
        validation_rows = min(run.batch_size, MAX_VALIDATION_ROWS)
        self.train_loader, held_out_samples = (
            PackedLoader(
                make_sample=make_sample,
                encode=image_tokenizer.encode,
                text_tokenizer=text_tokenizer,
                vocabulary=self.vocabulary,
                rows=rows,
                length=row_length,
                seed=run.seed,
            )
            for make_sample, rows in zip(make_samples, (run.batch_size, validation_rows), strict=True)
        )
        self.shard_loader: Prefetched | None = None
        if shards:
            self.shard_loader = Prefetched(self._shard_loader(shards, run.batch_size, row_length, run.seed))
        self.held_out_loader: PackedLoader | ShardLoader = held_out_samples
        if held_out_shards is not None:
            self.held_out_loader = self._shard_loader({str(held_out_shards): 1.0}, validation_rows, row_length, 0)

    def _shard_loader(self, shards: Mapping[str, float], rows: int, length: int, seed: int) -> ShardLoader:
        """Returns what reads from folders of shards, once these are known to be of both tokenizers."""
        folders = [Shards(Path(folder)) for folder in shards]
        for folder in folders:
            folder.check_made_by(image_tokenizer=self.image_tokenizer.hash, text_tokenizer=self.text_tokenizer.hash)
        return ShardLoader(folders, list(shards.values()), rows=rows, length=length, seed=seed)

    def batch(self, step: int, rank: int, world: int) -> LanguageBatch:
        """Returns this rank's rows of the step's batch, each a pure function of its number."""
        return self._with_targets((self.shard_loader or self.train_loader).batch(step, rank, world))

    def _with_targets(self, packed: PackedBatch) -> LanguageBatch:
        return (level_batch if self.by_level else language_batch)(packed, self.vocabulary)

    def data_state(self, step: int) -> dict[str, Any]:
        """Returns where the reading of shards stands before a step; scenes are drawn anew and have no state."""
        return self.shard_loader.state(step) if self.shard_loader is not None else {}

    def load_data_state(self, state: dict[str, Any]) -> None:
        """Goes on reading where the state was taken.

        Raises:
            ValueError: if it is that of other data.
        """
        if bool(state) != (self.shard_loader is not None):
            raise ValueError("shards must be given if, and only if, the run began with them")
        if self.shard_loader is not None:
            self.shard_loader.load_state(state)

    def loss(self, batch: LanguageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss of all targets, and that of text and codes by themselves."""
        if self.teacher is not None and self.model.training:
            nn.Module.to(self.teacher, self.model.device)
            return keeping_loss(self.model, self.teacher, batch)
        return loss(self.model, batch)

    def validate(self) -> dict[str, float]:
        """Returns the losses on held-out scenes or shards: the same few batches each time.

        A loader of shards still knows its last steps, so it can be asked for its first few again and again.
        """
        device = self.model.device
        rows = []
        for step in range(NUM_VALIDATION_BATCHES):
            batch = self._with_targets(self.held_out_loader.batch(step).to(device))
            rows.append(self.loss(batch)[1])
        return {name: sum(float(row[name]) for row in rows) / len(rows) for name in rows[0]}

    def samples(self, folder: Path) -> None:
        """Writes a sheet of quick pictures, painted by the image tokenizer's own decoder from what the model draws."""
        requests = [
            Request(prompt=prompt, max_text_tokens=0, num_pictures=1, start_picture=True, seed=seed)
            for seed, prompt in enumerate(self.prompts)
        ]
        rows = Engine(self.trained.stock(), self.vocabulary).generate(requests, Decoding(by_level=self.by_level))
        codes = [self.vocabulary.unflatten(row.ids[1:-1]) for row in rows]
        pictures = self.image_tokenizer.decode(Tokens.cat(codes))
        sheet = (rearrange(pictures, "b c h w -> h (b w) c") * 255).round().byte()
        Image.fromarray(sheet.numpy()).save(folder / "drawn.png")

    def export(self, folder: Path) -> None:
        """Writes the language model in bfloat16 and its text tokenizer, as stock ``transformers`` files.

        Adapters are merged, and written once more by themselves into ``adapter``.
        """
        copy = self.trained.stock_copy()
        copy.bfloat16()  # transformers takes the format it writes down from the model
        copy.set_attn_implementation("sdpa")
        copy.config.image_tokenizer_hash = self.image_tokenizer.hash
        copy.save_pretrained(folder)
        self.text_tokenizer.save(folder, self.vocabulary)
        self.trained.save_adapter(folder / "adapter")
