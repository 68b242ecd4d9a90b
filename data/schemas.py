"""What records of the field's published formats say: each format is one function from a record to a sample.

A sample is a chat where the format tells who speaks, else a document. A picture in an assistant's turn is a target,
drawn, in any format. What a format does not allow is a ``BadRecord`` that says what is wrong and what is allowed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rebus.data.bad_data import BadRecord
from rebus.data.picture_links import check_unicode, from_base64
from rebus.data.records import Record
from rebus.data.samples import Message, Picture, Role, Sample

OpenPicture = Callable[[object], Picture]
"""Returns the picture that a path, a URL, bytes or a struct of bytes and path stands for."""
Schema = Callable[[Record, OpenPicture], Sample]

_PLACEHOLDER = re.compile(r"(?:\n?)<image>(?:\n?)")
"""Where a text has a picture; one line break on either side belongs to it."""
_SPEAKERS: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def captions(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads a picture and its caption (``image`` and ``text``, ``caption`` or ``prompt``) as a document."""
    return _document([_text(record, "text", "caption", "prompt"), open_picture(_field(record, "image"))])


def text_to_image(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads a request and the picture drawn for it (``prompt``, ``caption`` or ``text``, and ``image``) as a chat."""
    return _chat(
        ("user", [_text(record, "prompt", "caption", "text")]), ("assistant", [open_picture(_field(record, "image"))])
    )


def edits(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads an edit: a picture, what is to be changed, and the changed picture.

    The names are those of InstructPix2Pix, ``input_image``, ``edit_prompt`` and ``edited_image``, or ``source``,
    ``instruction`` and ``target``.
    """
    before = open_picture(_field(record, "input_image", "source"))
    after = open_picture(_field(record, "edited_image", "target"))
    return _chat(("user", [before, _text(record, "edit_prompt", "instruction")]), ("assistant", [after]))


def llava(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads a conversation as LLaVA and ShareGPT write it.

    ``conversations`` is a list of ``from`` (``human`` or ``gpt``) and ``value``, in which ``<image>`` stands for the
    next picture of ``image``, which is one or a list.
    """
    pictures = _Pictures(_listed(record.get("image")), open_picture)
    turns = []
    for turn in _objects(record, "conversations"):
        turns.append((_speaker(turn, "from"), list(pictures.placed(_text(turn, "value")))))
    pictures.check_all_placed()
    return _chat(*turns)


def swift(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads messages as ms-swift writes them: ``role`` and ``content`` with ``<image>`` for the next of ``images``."""
    pictures = _Pictures(_listed(record.get("images")), open_picture)
    turns = []
    for message in _objects(record, "messages"):
        if message.get("loss", True) is not True and message.get("role") == "assistant":
            raise BadRecord("schema", "loss of a message must be true or absent, got false: all answers are learned")
        turns.append((_speaker(message, "role"), list(pictures.placed(_text(message, "content")))))
    pictures.check_all_placed()
    return _chat(*turns)


def openai(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads messages whose ``content`` is a text or a list of parts, as the APIs of OpenAI and Hugging Face take them.

    A part has a ``type``: ``text``, ``image_url`` with its ``url``, or ``image`` with ``image``, ``path``, ``url`` or
    ``base64``.
    """
    turns = []
    for message in _objects(record, "messages"):
        content = message.get("content")
        if isinstance(content, list):
            parts = [_openai_part(part, open_picture) for part in _all_objects(content, "content")]
        else:
            parts = [_text(message, "content")]
        turns.append((_speaker(message, "role"), parts))
    return _chat(*turns)


def obelics(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads a document as OBELICS and OmniCorpus write it.

    ``texts`` and ``images`` are lists of one length, and of each place exactly one of the two is not null.
    """
    texts, images = (_list(record, name) for name in ("texts", "images"))
    if len(texts) != len(images):
        raise BadRecord("num_pictures", f"texts and images must be as many, got {len(texts)} and {len(images)}")
    parts: list[str | Picture] = []
    for place, (text, image) in enumerate(zip(texts, images, strict=True)):
        if (text is None) == (image is None):
            got = "none" if text is None else "both"
            raise BadRecord("schema", f"place {place} must have a text or an image, got {got}")
        parts.append(open_picture(image) if text is None else _string(text, f"text {place}"))
    return _document(parts)


def mmc4(record: Record, open_picture: OpenPicture) -> Sample:
    """Reads a document of Multimodal C4: each picture comes before the sentence that it was matched with.

    ``text_list`` holds the sentences, ``image_info`` an ``image_name`` and a ``matched_text_index`` for each picture.
    """
    sentences = [_string(text, f"sentence {index}") for index, text in enumerate(_list(record, "text_list"))]
    before: dict[int, list[str]] = {}
    for info in _objects(record, "image_info"):
        index = info.get("matched_text_index")
        if not isinstance(index, int) or not 0 <= index < len(sentences):
            raise BadRecord("schema", f"matched_text_index must be in [0, {len(sentences)}), got {index!r}")
        before.setdefault(index, []).append(_text(info, "image_name"))
    parts: list[str | Picture] = []
    for index, sentence in enumerate(sentences):
        parts += map(open_picture, before.get(index, ()))
        parts.append(sentence if index + 1 == len(sentences) else f"{sentence} ")
    return _document(parts)


SCHEMAS: dict[str, Schema] = {
    "captions": captions,
    "text_to_image": text_to_image,
    "edits": edits,
    "llava": llava,
    "swift": swift,
    "openai": openai,
    "obelics": obelics,
    "omnicorpus": obelics,
    "mmc4": mmc4,
}
"""By the names that a command line takes."""


class _Pictures:
    """Pictures of a record, put in turn where its texts have a placeholder."""

    def __init__(self, links: Sequence[object], open_picture: OpenPicture):
        self._number, self._placed = len(links), 0
        self._links, self._open = links, open_picture

    def placed(self, text: str) -> Iterator[str | Picture]:
        """Yields the pieces of a text and the pictures between them."""
        first, *others = _PLACEHOLDER.split(text)
        if first:
            yield first
        for piece in others:
            if self._placed < self._number:
                yield self._open(self._links[self._placed])
            self._placed += 1
            if piece:
                yield piece

    def check_all_placed(self) -> None:
        """Raises unless there were as many places as pictures."""
        if self._placed != self._number:
            got = f"{self._placed} places for {self._number} pictures"
            raise BadRecord("num_pictures", f"<image> must stand once for each picture, got {got}")


def _chat(*turns: tuple[Role, Sequence[str | Picture]]) -> Sample:
    roles = [role for role, _ in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadRecord("schema", f"messages must be of user and assistant in turn, got {', '.join(roles) or 'none'}")
    return Sample(tuple(Message(role, tuple(parts)) for role, parts in turns))


def _document(parts: Sequence[str | Picture]) -> Sample:
    if not parts:
        raise BadRecord("empty_text", "a document must have a text or a picture, got none")
    return Sample((Message("document", tuple(parts)),))


def _openai_part(part: Record, open_picture: OpenPicture) -> str | Picture:
    kind = part.get("type")
    if kind == "text":
        return _text(part, "text")
    if kind == "image_url":
        link = part.get("image_url")
        return open_picture(link.get("url") if isinstance(link, dict) else link)
    if kind == "image":
        encoded = part.get("base64")
        return open_picture(from_base64(encoded) if isinstance(encoded, str) else _field(part, "image", "path", "url"))
    raise BadRecord("schema", f"type of a part must be text, image_url or image, got {kind!r}")


def _speaker(turn: Record, name: str) -> Role:
    found = turn.get(name)
    if not isinstance(found, str) or found not in _SPEAKERS:
        raise BadRecord("schema", f"{name} of a turn must be one of {', '.join(_SPEAKERS)}, got {found!r}")
    return _SPEAKERS[found]


def _field(record: Record, *names: str) -> Any:
    """Returns the first of these fields that the record has."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise BadRecord("schema", f"a record must have {' or '.join(names)}, got {', '.join(sorted(record)[:20])}")


def _text(record: Record, *names: str) -> str:
    return _string(_field(record, *names), " or ".join(names))


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecord("schema", f"{name} must be a text, got {type(value).__name__}")
    if not value.strip():
        raise BadRecord("empty_text", f"{name} must not be empty, got no letter")
    check_unicode(value, name)
    return value


def _list(record: Record, name: str) -> list[Any]:
    value = _field(record, name)
    if not isinstance(value, list):
        raise BadRecord("schema", f"{name} must be a list, got {type(value).__name__}")
    return value


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _objects(record: Record, name: str) -> list[Record]:
    return _all_objects(_list(record, name), name)


def _all_objects(values: list[Any], name: str) -> list[Record]:
    if not all(isinstance(value, dict) for value in values):
        raise BadRecord("schema", f"{name} must be a list of objects, got another thing in it")
    return values
