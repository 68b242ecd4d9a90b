"""A whole model from one folder: draws, describes, answers and talks. Each part is read when it is first needed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rebus.data.image_files import fit, read_picture
from rebus.data.rendering import joined_parts
from rebus.data.samples import Message, Picture, Sample, pictures, with_tokens
from rebus.model.drafts import num_drafts, prompt_text
from rebus.model.drawing import Drawing, DrawingSettings, Statistics, Written, drawings, picture_seeds
from rebus.model.guidance import Guidance
from rebus.model.saved import SavedModel
from rebus.model.token_reduction import TokenReduction
from rebus.model.writing import Chat, Preview, Writer
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import Tokens

if TYPE_CHECKING:
    from rebus.model.decoder_pipeline import DecoderPipeline

MOST_PICTURES = 4
"""Pictures of one answer in a chat."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class Rebus:
    """A saved model. To talk, the image tokenizer is read only for a picture that is given, the decoder only to paint.

    ``image_tokenizer``, ``writer`` (with the language model) and ``painter`` (decoder and auto-encoder) are the parts;
    a model without a painter paints with its image tokenizer.
    """

    def __init__(self, saved: SavedModel, device: str, dtype: torch.dtype) -> None:
        self.saved = saved
        self.device = device
        self.writer = Writer(saved, device, dtype)

    @staticmethod
    def load(
        folder: Path | str, *, device: str = "cpu", dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    ) -> "Rebus":
        """Opens a saved model.

        Args:
            folder: such as ``assets/mini``.
            device: a torch device.
            dtype: number format of the language model; the other parts stay in float32. With ``int8`` its matrices
                are 8-bit integers, and all else is bfloat16.

        Raises:
            ValueError: if the folder holds no model whose parts fit together, or torch has no such device here.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device must be one that torch has here, such as cpu, got {device}") from error
        return Rebus(SavedModel.open(Path(folder)), device, DTYPES[dtype])

    def draw(
        self,
        prompts: str | Message | Sequence[str | Message],
        *,
        num_images: int = 1,
        seed: int | Sequence[int] = 0,
        **settings: Any,
    ) -> list[Drawing]:
        """Returns pictures drawn as one batch, those of the first prompt first.

        Args:
            prompts: one or several; each a text, or what the user says in text and pictures, as for an edit.
            num_images: pictures for each prompt.
            seed: of each picture, or of the first, from which the others count on. Batches do not change a picture.
            settings: fields of ``DrawingSettings`` that shall differ from the model's own.

        Raises:
            ValueError: if a prompt is empty or too long, or a setting is out of range.
        """
        chosen = replace(self.saved.settings, **settings)
        several = [prompts] if isinstance(prompts, str | Message) else prompts
        messages = self.check([prompt for prompt in several for _ in range(num_images)])
        seeds = picture_seeds(seed, len(messages))
        numbers = [num_drafts(message, chosen.best_of) for message in messages]
        assert self.writer.engine  # read before the clock starts
        start = time.perf_counter()
        tokens = self.writer.draw(messages, chosen, seeds, numbers)
        written = Written(num_codes=sum(numbers) * tokens.ids[0].numel(), seconds=time.perf_counter() - start)
        each, texts = [replace(chosen, best_of=number) for number in numbers], list(map(prompt_text, messages))
        return self._paint(tokens, each, seeds, texts, written)

    def check(self, prompts: Sequence[str | Message]) -> list[Message]:
        """Returns prompts to draw as messages whose pictures have codes.

        Raises:
            ValueError: if one is empty or too long.
        """
        messages = [Message("user", (prompt,)) if isinstance(prompt, str) else prompt for prompt in prompts]
        for message in messages:
            if not any(part.strip() for part in message.parts if isinstance(part, str)):
                raise ValueError("a prompt must hold text, got an empty one")
        coded = self._coded([(message,) for message in messages])
        self.writer.prompts(coded)
        return [message for (message,) in coded]

    def look(self, image: Image.Image | Path) -> Picture:
        """Returns a picture of any size, or the one in a file, as codes: what a message may hold.

        Raises:
            ValueError: if the file holds no picture.
        """
        return Picture(tokens=self._encode([self._picture(image)])[0])

    def paint(
        self, tokens: Tokens, *, text: Sequence[str] | None = None, seed: int | Sequence[int] = 0, **settings: Any
    ) -> list[Drawing]:
        """Returns the pictures of codes, or of the first codes where the layout allows it, painted as one batch.

        Args:
            tokens: codes of this model's image tokenizer.
            text: what each shows; a decoder that reads no text takes no notice.
            seed: of each picture, or of the first, from which the others count on.
            settings: ``painter``, ``steps``, ``decoder_guidance``, ``height`` and ``width`` of ``DrawingSettings``, if
                not the model's own.

        Raises:
            ValueError: if the codes are of another layout, or a setting is out of range.
        """
        chosen, number = replace(self.saved.settings, best_of=1, **settings), len(tokens.lengths)
        return self._paint(tokens, [chosen] * number, picture_seeds(seed, number), text, None)

    def rebuild(self, images: Sequence[Image.Image | Path]) -> list[Drawing]:
        """Returns each picture as its codes keep it: encoded and painted again, as one batch."""
        return self.paint(Tokens.cat(self._encode([self._picture(image) for image in images])))

    def caption(self, image: Image.Image | Path) -> str:
        """Returns a description of a picture of any size, or of the one in a file."""
        return self.captions([image])[0]

    def captions(self, images: Sequence[Image.Image | Path]) -> list[str]:
        """Returns a description of each picture, made as one batch."""
        return self.answers(images, [self.saved.caption_request] * len(images))

    def answer(self, image: Image.Image | Path, question: str) -> str:
        """Returns the answer to a question about a picture of any size, or about the one in a file."""
        return self.answers([image], [question])[0]

    def answers(
        self,
        images: Sequence[Image.Image | Path],
        questions: Sequence[str],
        *,
        reduction: TokenReduction | None = None,
    ) -> list[str]:
        """Returns the answer to a question about each picture, made as one batch.

        Args:
            images: of any size, or files.
            questions: one for each picture.
            reduction: how many of a picture's codes are read, and which; all by default.
        """
        pairs = zip(images, questions, strict=True)
        chats = [(Message("user", (self._picture(image), question)),) for image, question in pairs]
        return self.replies(chats, reduction=reduction)

    def replies(
        self, chats: Sequence[Chat], *, max_text_tokens: int = 200, reduction: TokenReduction | None = None
    ) -> list[str]:
        """Returns what the assistant says next in each chat, in words alone, made as one batch.

        Args:
            chats: messages of the user and the assistant in turn; their pictures are as from ``look``.
            max_text_tokens: length at which an answer breaks off.
            reduction: as for ``answers``.

        Raises:
            ValueError: if a chat is too long.
        """
        decoding = replace(self.saved.settings.decoding(), guidance=Guidance(), reduction=reduction)
        seeds = [0] * len(chats)  # of text always the likeliest is said
        rows = self.writer.reply(self._coded(chats), decoding, seeds, max_text_tokens=max_text_tokens, num_pictures=0)
        return ["".join(part for part in row if isinstance(part, str)) for row in rows]

    def log_likelihoods(self, chats: Sequence[Chat], texts: Sequence[str]) -> list[Float[Tensor, " ids"]]:
        """Returns the log-probabilities in nats of the ids of what the assistant might say next, one text for a chat.

        Raises:
            ValueError: if a chat with its text is too long, or a text is empty.
        """
        prompts = self.writer.prompts(self._coded(chats))
        ids = [self.writer.text_tokenizer.encode(text) for text in texts]
        for prompt, text in zip(prompts, ids, strict=True):
            if not text or len(prompt) + len(text) > self.saved.max_positions:
                most = self.saved.max_positions
                raise ValueError(f"a text must have an id and end by position {most}, got {len(prompt)} + {len(text)}")
        return self.writer.engine.log_likelihoods(prompts, ids)

    def generate(
        self, messages: Sequence[Message], *, max_text_tokens: int = 200, seed: int = 0, **settings: Any
    ) -> Message:
        """Returns what the assistant says next in a chat; its pictures are codes, for ``paint``.

        Args:
            messages: of the user and the assistant in turn.
            max_text_tokens: length of the text at which the answer breaks off; pictures are at most ``MOST_PICTURES``.
            seed: of all random draws.
            settings: fields of ``DrawingSettings`` that shall differ from the model's own; in a chat each picture has
                one draft, whatever ``best_of`` is.

        Raises:
            ValueError: if the chat is too long, or a setting is out of range.
        """
        parts = self.stream(messages, max_text_tokens=max_text_tokens, seed=seed, **settings)
        return Message("assistant", joined_parts(part for part in parts if not isinstance(part, Preview)))

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_text_tokens: int = 200,
        seed: int = 0,
        preview_every: int | None = None,
        **settings: Any,
    ) -> Iterator[str | Picture | Preview]:
        """Yields what ``generate`` returns as it comes: text piece by piece, pictures once they are whole.

        With ``preview_every``, each picture is shown before that after every so many codes, for ``preview``.
        """
        chosen = replace(self.saved.settings, **settings)
        (chat,) = self._coded([messages])
        (seed,) = picture_seeds(seed, 1)
        numbers = {"max_text_tokens": max_text_tokens, "num_pictures": MOST_PICTURES}
        return self.writer.stream(chat, chosen, seed, **numbers, preview_every=preview_every)

    def preview(self, begun: Preview) -> Image.Image:
        """Returns what there is of a picture at once, by the image tokenizer's own decoder: gray where codes lack."""
        (pixels,) = self.image_tokenizer.decode(begun.tokens.to(self.device))
        shown = rearrange((pixels * 255).round().byte().cpu(), "rgb height width -> height width rgb")
        return Image.fromarray(shown.numpy())

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """Reads pictures."""
        return ImageTokenizer.load(self.saved.path("image_tokenizer"), self.device)

    @cached_property
    def painter(self) -> "DecoderPipeline":
        """Paints codes."""
        from rebus.model.decoder import DiffusionDecoder
        from rebus.model.decoder_pipeline import DecoderPipeline
        from rebus.model.vae_weights import read_vae

        tokenizer_hash = self.saved.image_tokenizer_hash
        decoder = DiffusionDecoder.load(self.saved.path("decoder"), self.device, tokenizer_hash=tokenizer_hash)
        return DecoderPipeline(decoder, read_vae(self.saved.path("vae"), self.device))

    def _paint(
        self,
        tokens: Tokens,
        settings: Sequence[DrawingSettings],
        seeds: Sequence[int],
        text: Sequence[str] | None,
        written: Written | None,
    ) -> list[Drawing]:
        """Returns the pictures of codes that the language model wrote, or that were given."""
        chosen = settings[0]
        by_pixels = chosen.painter == "pixels"
        assert self.image_tokenizer if by_pixels else self.painter  # read before the clock starts
        start = time.perf_counter()
        if by_pixels:
            pictures = self.image_tokenizer.decode(tokens.to(self.device), seeds=seeds)
        else:
            pictures = self.painter.render(
                tokens,
                text=text if self.painter.reads_text else None,
                size=chosen.size,
                steps=chosen.steps,
                guidance=chosen.decoder_guidance,
                seed=seeds,
            )
        statistics = Statistics(
            batch_size=len(seeds),
            codes_per_second=written and written.num_codes / written.seconds,
            language_model_seconds=written.seconds if written else 0.0,
            decoder_seconds=time.perf_counter() - start,
        )
        return drawings(pictures, tokens, seeds, settings, statistics)

    def _coded(self, chats: Sequence[Chat]) -> list[Chat]:
        """Returns chats with the codes of their pictures."""
        samples = [Sample(tuple(chat)) for chat in chats]
        codes = iter(self._encode([picture for sample in samples for picture in pictures(sample)]))
        return [with_tokens(sample, [next(codes) for _ in pictures(sample)]).messages for sample in samples]

    def _picture(self, image: Image.Image | Path) -> Picture:
        size_px = self.saved.image_size_px
        return Picture(read_picture(image, size_px) if isinstance(image, Path) else fit(image, size_px))

    def _encode(self, shown: Sequence[Picture]) -> list[Tokens]:
        """Returns the codes of pictures; those that have none yet are encoded as one batch."""
        fresh = [torch.tensor(picture.pixels) for picture in shown if picture.tokens is None]
        if not fresh:
            return [picture.tokens for picture in shown if picture.tokens is not None]
        pixels = rearrange(torch.stack(fresh), "batch height width rgb -> batch rgb height width")
        encoded = self.image_tokenizer.encode(pixels.to(self.device)).to("cpu")
        new = (encoded.row(index) for index in range(len(fresh)))
        return [next(new) if picture.tokens is None else picture.tokens for picture in shown]
