"""What a model learns from: messages whose parts are text and pictures in any order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from rebus.tokenizers.tokens import Tokens

Role = Literal["document", "user", "assistant"]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as pixels, as codes, or as both."""

    pixels: UInt8[np.ndarray, "height width 3"] | None = None
    """Red, green, blue in [0, 255]."""
    tokens: Tokens | None = None
    """A batch of one."""

    def __post_init__(self):
        if self.pixels is None and self.tokens is None:
            raise ValueError("a picture must have pixels or tokens, got neither")
        if self.tokens is not None and len(self.tokens.lengths) != 1:
            raise ValueError(f"tokens of a picture must be a batch of one, got {len(self.tokens.lengths)}")


@dataclass(frozen=True)
class Message:
    """What one speaker says; a picture in an assistant message is a target like any text there."""

    role: Role
    parts: tuple[str | Picture, ...]


@dataclass(frozen=True)
class Sample:
    """A document (exactly one message of role ``document``) or a chat (messages of the other two roles)."""

    messages: tuple[Message, ...]
    asked: tuple[tuple[str, str], ...] = ()
    """Questions that end the last message, the user's, each with its answer; each as if it were the only one."""

    def __post_init__(self):
        assert not self.asked or self.messages[-1].role == "user"
        roles = [message.role for message in self.messages]
        if not roles or ("document" in roles and len(roles) > 1):
            raise ValueError(f"messages must be one document or a chat of user and assistant, got roles {roles}")

    @property
    def is_document(self) -> bool:
        """Whether the sample is a document rather than a chat."""
        return self.messages[0].role == "document"


def pictures(sample: Sample) -> list[Picture]:
    """Returns all pictures in reading order."""
    return [part for message in sample.messages for part in message.parts if isinstance(part, Picture)]


def with_tokens(sample: Sample, rows: Sequence[Tokens]) -> Sample:
    """Returns the sample with its pictures, in reading order, given the codes of ``rows`` (batches of one).

    Raises:
        ValueError: if there are not as many rows as pictures.
    """
    expected = len(pictures(sample))
    if len(rows) != expected:
        raise ValueError(f"rows must be one for each of the {expected} pictures, got {len(rows)}")
    remaining = iter(rows)
    messages = []
    for message in sample.messages:
        parts = tuple(replace(p, tokens=next(remaining)) if isinstance(p, Picture) else p for p in message.parts)
        messages.append(replace(message, parts=parts))
    return replace(sample, messages=tuple(messages))
