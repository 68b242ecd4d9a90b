"""Samples to ids and back: which ids a sample becomes, and which of them a model learns to write.

A document is ``bos, parts, eos``. A chat is ``bos`` and then, for each message, ``user | assistant, parts, eos``. Each
text is encoded by itself and each picture is spliced in as ids, so that no text can spell a picture or a control token.
What several questions share is rendered once, and each of them behind it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rebus.data.samples import Message, Picture, Role, Sample
from rebus.model.grammar import Grammar, PictureSpan
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import Tokens
from rebus.tokenizers.vocabulary import Vocabulary

NOT_TRAINED = -100


@dataclass(frozen=True)
class Rendered:
    """The ids of one sample, with two marks for each."""

    ids: list[int]
    targets: list[int]
    """The same ids, not shifted, and -100 where the model does not learn to write them."""
    modality: list[int]
    """1 for the code of a picture, 0 for text, control and sizes."""
    endings: tuple[int, ...] = ()
    """Where each of several endings starts: it sees what is before the first of them, and none of the others."""


def canonical(sample: Sample) -> Sample:
    """Returns the one of all samples with the same ids that ``parse`` gives back.

    Adjacent texts of a message are joined, empty texts dropped, and pictures keep only their codes.

    Raises:
        ValueError: if a picture has no codes.
    """
    messages = tuple(replace(message, parts=joined_parts(message.parts)) for message in sample.messages)
    return replace(sample, messages=messages)


def joined_parts(parts: Iterable[str | Picture]) -> tuple[str | Picture, ...]:
    """Returns parts of a message with adjacent texts joined, empty texts dropped, and only the codes of pictures."""
    joined: list[str | Picture] = []
    for part in parts:
        if isinstance(part, Picture):
            if part.tokens is None:
                raise ValueError("a picture must have tokens to be rendered, got pixels only")
            joined.append(Picture(tokens=part.tokens))
        elif joined and isinstance(last := joined[-1], str):
            joined[-1] = last + part
        elif part:
            joined.append(part)
    return tuple(joined)


def render(sample: Sample, text_tokenizer: TextTokenizer, vocabulary: Vocabulary) -> Rendered:
    """Returns the ids of a sample whose pictures have codes.

    In a document everything but ``bos`` is a target; in a chat the assistant's parts and the ``eos`` after them.

    Raises:
        ValueError: if a picture lacks codes or has not all of them, or a text cannot be encoded.
    """
    ids, targets, modality = [vocabulary.bos], [NOT_TRAINED], [0]
    for message in canonical(sample).messages:
        if message.role != "document":
            ids.append(vocabulary.user if message.role == "user" else vocabulary.assistant)
            targets.append(NOT_TRAINED)
            modality.append(0)
        start = len(ids)
        for part in message.parts:
            part_ids, part_modality = _render_part(part, text_tokenizer, vocabulary)
            ids += part_ids
            modality += part_modality
        ids.append(vocabulary.eos)
        modality.append(0)
        targets += [NOT_TRAINED] * (len(ids) - start) if message.role == "user" else ids[start:]
    rendered = Rendered(ids, targets, modality)
    return _with_endings(rendered, sample, text_tokenizer, vocabulary) if sample.asked else rendered


def _with_endings(shared: Rendered, sample: Sample, text_tokenizer: TextTokenizer, vocabulary: Vocabulary) -> Rendered:
    """Returns what the questions share, its last message still open, and each question with its answer."""
    ids, targets = shared.ids[:-1], shared.targets[:-1]
    endings = []
    for question, answer in sample.asked:
        endings.append(len(ids))
        asked = [*text_tokenizer.encode(question), vocabulary.eos, vocabulary.assistant]
        answered = [*text_tokenizer.encode(answer), vocabulary.eos]
        ids += asked + answered
        targets += [NOT_TRAINED] * len(asked) + answered
    modality = shared.modality + [0] * (len(ids) - len(shared.modality))
    return Rendered(ids, targets, modality, tuple(endings))


def _render_part(
    part: str | Picture, text_tokenizer: TextTokenizer, vocabulary: Vocabulary
) -> tuple[list[int], list[int]]:
    if isinstance(part, str):
        ids = text_tokenizer.encode(part)
        return ids, [0] * len(ids)
    assert part.tokens is not None  # canonical() has seen to it
    ids = whole_picture(part.tokens, vocabulary)
    first_code = vocabulary.control_range[1]
    return ids, [int(token >= first_code) for token in ids]


def whole_picture(tokens: Tokens, vocabulary: Vocabulary) -> list[int]:
    """Returns the ids of one picture, with its control and size tokens.

    Raises:
        ValueError: if the picture is a prefix, which a sample may not hold even where a decoder takes it.
    """
    ids = [vocabulary.begin_picture, *vocabulary.flatten(tokens), vocabulary.end_picture]
    whole = vocabulary.layout.num_positions_of(next(iter(tokens.grids), None))
    if tokens.lengths[0] != whole:
        raise ValueError(f"picture must have {whole} positions, got {int(tokens.lengths[0])}")
    return ids


def render_prompt(messages: Sequence[Message], text_tokenizer: TextTokenizer, vocabulary: Vocabulary) -> list[int]:
    """Returns the ids of a chat up to where the assistant's next answer begins.

    Raises:
        ValueError: as ``render``, or if the messages are no chat.
    """
    sample = Sample(tuple(messages))
    if sample.is_document:
        raise ValueError("messages of a prompt must be a chat, got a document")
    return [*render(sample, text_tokenizer, vocabulary).ids, vocabulary.assistant]


def parse(ids: Sequence[int], text_tokenizer: TextTokenizer, vocabulary: Vocabulary) -> Sample:
    """Returns the sample that was rendered: ``parse(render(sample).ids)`` is ``canonical(sample)``.

    Raises:
        ValueError: if ``ids`` are no whole document or chat, or a picture has not all its codes.
    """
    if not ids or ids[0] != vocabulary.bos:
        raise ValueError(f"ids must start with bos ({vocabulary.bos}), got {list(ids[:1])}")
    roles: dict[int, Role] = {vocabulary.user: "user", vocabulary.assistant: "assistant"}
    messages = []
    start = 1
    while start < len(ids):
        role: Role = roles.get(ids[start], "document")
        first = start if role == "document" else start + 1
        try:
            stop = ids.index(vocabulary.eos, first)
        except ValueError:
            raise ValueError(f"message {len(messages)} must end with eos ({vocabulary.eos}), got none") from None
        messages.append(Message(role, parse_parts(ids[first:stop], text_tokenizer, vocabulary)))
        start = stop + 1
    return Sample(tuple(messages))


def parse_parts(ids: Sequence[int], text_tokenizer: TextTokenizer, vocabulary: Vocabulary) -> tuple[str | Picture, ...]:
    """Returns the texts and pictures of one message, without the tokens that open and close it.

    Raises:
        ValueError: if another control token is among ``ids``, or a picture has not all its codes.
    """
    parts: list[str | Picture] = []
    for span in Grammar(vocabulary).spans(ids):
        if isinstance(span, PictureSpan):
            parts.append(Picture(tokens=vocabulary.unflatten(ids[span.content])))
        else:
            parts.append(text_tokenizer.decode(ids[span.start : span.stop]))
    return tuple(parts)
