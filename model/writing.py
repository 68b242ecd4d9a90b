"""What a saved model's language model writes: the codes of pictures, and text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from rebus.data.rendering import parse_parts, render_prompt
from rebus.data.samples import Message, Picture
from rebus.model.continuation import Continuation, Decoding, Request
from rebus.model.drafts import CODES_SHARE, best_drafts, draft_seed, likely_codes, read_back
from rebus.model.drawing import DrawingSettings
from rebus.model.engine import Engine
from rebus.model.llama_weights import read_language_model
from rebus.model.saved import SavedModel
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import Tokens

MOST_ROWS = 64
"""Drafts that are written as one batch; more are written in turn."""

Chat = Sequence[Message]
"""Messages of the user and the assistant in turn; their pictures have codes."""


@dataclass(frozen=True, eq=False)
class Preview:
    """A picture that is being written."""

    tokens: Tokens
    """Its first codes, of whole positions."""


class Writer:
    """A language model with the texts and pictures that go in and come out of it; it is read when it has to write."""

    def __init__(self, saved: SavedModel, device: str, dtype: torch.dtype) -> None:
        self.saved, self.device, self.dtype = saved, device, dtype
        self.text_tokenizer = TextTokenizer.load(saved.path("text_tokenizer"))

    @cached_property
    def engine(self) -> Engine:
        """Continues ids."""
        int8 = self.dtype == torch.int8
        folder, dtype = self.saved.path("language_model"), torch.bfloat16 if int8 else self.dtype
        return Engine(read_language_model(folder, self.device, dtype), self.saved.vocabulary, int8=int8)

    def draw(
        self, messages: Sequence[Message], settings: DrawingSettings, seeds: Sequence[int], numbers: Sequence[int]
    ) -> Tokens:
        """Returns the codes of a picture for each message: the best of so many drafts."""
        drafts, marks = self.drafts(messages, settings, seeds, numbers)
        return Tokens.cat([drafts[index] for index in best_drafts(marks, numbers)])

    def drafts(
        self, messages: Sequence[Message], settings: DrawingSettings, seeds: Sequence[int], numbers: Sequence[int]
    ) -> tuple[list[Tokens], list[float]]:
        """Returns so many drafts for each message, and by what they are told apart: the higher, the better.

        Where no message has several, nothing is told apart, and all marks are 0.
        """
        places = [(index, draft) for index, number in enumerate(numbers) for draft in range(number)]
        drafts, marks = [], []
        for start in range(0, len(places), MOST_ROWS):
            batch = places[start : start + MOST_ROWS]
            rows = self.reply(
                [(messages[index],) for index, _ in batch],
                settings.decoding(),
                [draft_seed(seeds[index], draft) for index, draft in batch],
                max_text_tokens=0,
                num_pictures=1,
                start_picture=True,
            )
            drawn = [part.tokens for row in rows for part in row if isinstance(part, Picture) and part.tokens]
            drafts += drawn
            if max(numbers) > 1:
                asked = [messages[index] for index, _ in batch]
                told = read_back(self.engine, self.text_tokenizer, self.saved.caption_request, drawn, asked)
                codes = [self.saved.vocabulary.flatten(draft) for draft in drawn]
                likely = likely_codes(self.engine, self.text_tokenizer, codes, asked)
                marks += [one + CODES_SHARE * other for one, other in zip(told, likely, strict=True)]
        return drafts, marks or [0.0] * len(drafts)

    def draw_on(
        self,
        messages: Sequence[Message],
        begun: Sequence[Sequence[int]],
        stop: int,
        decoding: Decoding,
        seeds: Sequence[int],
        *,
        keep: bool,
    ) -> list[list[int]]:
        """Returns the ids of the first codes of a picture for each message, of which some are there already.

        Args:
            messages: what the user asks for.
            begun: ids of the codes that each picture has.
            stop: how many it shall have.
            decoding: how they are drawn.
            seeds: of each picture; the codes that it has are taken to be drawn from it, too.
            keep: whether the next call need not read again what its pictures have in common with these.

        Raises:
            ArithmeticError: if the model's logits are no numbers.
        """
        chats = [(message,) for message in messages]
        requests = [
            Request(
                prompt=prompt,
                others=self._others(chat, decoding.guidance.num_others),
                max_text_tokens=0,
                num_pictures=1,
                start_picture=True,
                begun=codes,
                leave_at=stop,
                seed=seed,
            )
            for chat, prompt, codes, seed in zip(chats, self.prompts(chats), begun, seeds, strict=True)
        ]
        return [row.ids[1:] for row in self._generated(requests, decoding, keep=keep)]

    def reply(
        self,
        chats: Sequence[Chat],
        decoding: Decoding,
        seeds: Sequence[int],
        *,
        max_text_tokens: int,
        num_pictures: int,
        start_picture: bool = False,
    ) -> list[tuple[str | Picture, ...]]:
        """Returns what the assistant says next in each chat. The numbers are those of a ``Request``.

        Raises:
            ArithmeticError: if the model's logits are no numbers.
        """
        requests = [
            Request(
                prompt=prompt,
                others=self._others(chat, decoding.guidance.num_others),
                max_text_tokens=max_text_tokens,
                num_pictures=num_pictures,
                start_picture=start_picture,
                seed=seed,
            )
            for chat, prompt, seed in zip(chats, self.prompts(chats), seeds, strict=True)
        ]
        rows = self._generated(requests, decoding)
        said = [row.ids[:-1] if row.ended == "eos" else row.ids for row in rows]
        return [parse_parts(ids, self.text_tokenizer, self.saved.vocabulary) for ids in said]

    def stream(
        self,
        chat: Chat,
        settings: DrawingSettings,
        seed: int,
        *,
        max_text_tokens: int,
        num_pictures: int,
        preview_every: int | None = None,
    ) -> Iterator[str | Picture | Preview]:
        """Yields what the assistant says next, text piece by piece; the next turn need not read this one again.

        A picture comes when it is whole, and before that a preview after each ``preview_every`` codes, if that is set.

        Raises:
            ArithmeticError: if the model's logits are no numbers.
        """
        decoding = settings.decoding()
        request = Request(
            prompt=self.prompts([chat])[0],
            others=self._others(chat, decoding.guidance.num_others),
            max_text_tokens=max_text_tokens,
            num_pictures=num_pictures,
            seed=seed,
        )
        ids, told = [], ""
        for event in self.engine.stream([request], decoding, keep=True, preview_every=preview_every):
            if event.kind == "text":
                ids += [token for token in event.ids if token != self.saved.vocabulary.eos]
                said = self.text_tokenizer.decode(ids)
                if said != told and not said.endswith("\N{REPLACEMENT CHARACTER}"):  # half a letter
                    yield said[len(told) :]
                    told = said
            elif event.kind == "picture":
                yield Picture(tokens=self.saved.vocabulary.unflatten(event.ids[1:-1]))
                ids, told = [], ""
            elif event.kind == "picture_preview":
                codes = event.ids[: len(event.ids) - len(event.ids) % len(self.saved.vocabulary.layout.streams)]
                yield Preview(self.saved.vocabulary.unflatten(codes, whole=False))
            elif event.kind == "failed":
                raise ArithmeticError("logits must be numbers, got others")

    def prompts(self, chats: Sequence[Chat]) -> list[list[int]]:
        """Returns the ids of chats that the assistant is to continue.

        Raises:
            ValueError: if one leaves no room for a picture.
        """
        vocabulary, room = self.saved.vocabulary, self.saved.max_positions - self.saved.vocabulary.picture_length()
        prompts = [render_prompt(chat, self.text_tokenizer, vocabulary) for chat in chats]
        for ids in prompts:
            if len(ids) > room:
                raise ValueError(f"a prompt must be at most {room} tokens long, got {len(ids)}")
        return prompts

    def _generated(self, requests: Sequence[Request], decoding: Decoding, *, keep: bool = False) -> list[Continuation]:
        """Returns what follows each prompt, if all of it makes sense."""
        rows = self.engine.generate(requests, decoding, keep=keep)
        wrong = [index for index, row in enumerate(rows) if row.ended == "not_a_number"]
        if wrong:
            raise ArithmeticError(f"logits must be numbers, got others in rows {wrong} of {len(rows)}")
        return rows

    def _others(self, chat: Chat, number: int) -> tuple[list[int], ...]:
        """Returns the prompts that guidance compares with: the chat's pictures alone if there are two, and nothing."""
        nothing = [Message("user", ())]
        shown = [Message(one.role, tuple(part for part in one.parts if isinstance(part, Picture))) for one in chat]
        several = {0: (), 1: (nothing,), 2: (shown, nothing)}[number]
        return tuple(render_prompt(one, self.text_tokenizer, self.saved.vocabulary) for one in several)
