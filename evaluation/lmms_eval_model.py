"""Lets lmms-eval examine a saved model. Only lmms-eval imports this file, which needs its base class.

python -m lmms_eval --model rebus --model_args pretrained=assets/mini --tasks pope --batch_size 8
python -m lmms_eval --model rebus --force_simple --model_args pretrained=assets/mini --tasks mmbench_en_dev

By default pictures stand in a message where the task puts them. With ``--force_simple`` they all come before the text,
and likelihoods are computed, too, for tasks of multiple choice. Answers are always the likeliest.

Source: https://github.com/EvolvingLMMs-Lab/lmms-eval (0.7.3), ``lmms_eval/api/model.py`` and ``instance.py``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image

from rebus.data.samples import Message, Picture
from rebus.model.rebus import Rebus

Chat = list[Message]
Asked = TypeVar("Asked")
_MAX_NEW_TOKENS = 200
_LIKELIEST = {"do_sample": False, "num_beams": 1}
"""Settings of decoding, and what they are where the likeliest text is said."""
_lmms: Any = import_module("lmms_eval.api.model").lmms


class RebusChat(_lmms):
    """Answers chats in which texts and pictures stand in any order."""

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        """Opens a saved model.

        Args:
            arguments: ``pretrained``, its folder; ``device``, ``dtype`` and ``batch_size`` if others than the defaults.

        Raises:
            ValueError: if there is none, or an argument is unknown or no value for it.
        """
        super().__init__()
        self._examined = _Examined(**arguments)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns an answer to each request.

        Raises:
            ValueError: if a chat cannot be given to the model, or the settings ask for other than the likeliest answer.
        """
        asked = []
        for _, messages_of, settings, document, task, split in (request.args for request in requests):
            messages = messages_of(self.task_dict[task][split][document])
            chat = [self._examined.message(one["role"], map(_content, one["content"])) for one in messages]
            asked.append((chat, settings))
        return self._examined.generate(asked)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuses: the base class has every model define it, but lmms-eval asks only simple models for likelihoods."""
        raise NotImplementedError("likelihoods of chats are not asked for by lmms-eval; run it with --force_simple")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuses: the base class has every model define it, and no task of several rounds was ever tried."""
        raise NotImplementedError("tasks of several rounds cannot be run")


class RebusSimple(_lmms):
    """Answers texts after pictures, and tells how likely answers are."""

    is_simple = True

    def __init__(self, **arguments: Any) -> None:
        """Opens a saved model.

        Args:
            arguments: ``pretrained``, its folder; ``device``, ``dtype`` and ``batch_size`` if others than the defaults.

        Raises:
            ValueError: if there is none, or an argument is unknown or no value for it.
        """
        super().__init__()
        self._examined = _Examined(**arguments)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns an answer to each request, as ``RebusChat``."""
        asked = []
        for text, settings, pictures_of, document, task, split in (request.args for request in requests):
            asked.append((self._chat(text, pictures_of, self.task_dict[task][split][document]), settings))
        return self._examined.generate(asked)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns the log-likelihood in nats of each continuation, and whether it is what the model would say.

        Raises:
            ValueError: if a text cannot be given to the model.
        """
        asked = []
        for text, wanted, pictures_of, document, task, split in (request.args for request in requests):
            of = self.task_dict[task][split][document]
            continuation = wanted if isinstance(wanted, str) else wanted(of)
            asked.append((self._chat(text, pictures_of, of), continuation))
        return self._examined.log_likelihoods(asked)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuses: the base class has every model define it, and no task of several rounds was ever tried."""
        raise NotImplementedError("tasks of several rounds cannot be run")

    def _chat(self, text: str, pictures_of: Any, document: Any) -> Chat:
        pictures = (pictures_of(document) if pictures_of else None) or []
        files = (Path(one) if isinstance(one, str) else one for one in pictures)
        return [self._examined.message("user", [*files, text])]


class _Examined:
    """A saved model as both classes use it."""

    def __init__(
        self,
        pretrained: str,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16", "int8"] = "float32",
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        if unknown := sorted({*others} - {"max_batch_size"}):  # which lmms-eval hands to every model
            raise ValueError(f"model_args must be of pretrained, device and dtype, got {', '.join(unknown)}")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a number from 1 on, got {batch_size}")
        self.rebus = Rebus.load(pretrained, device=device, dtype=dtype)
        self.batch_size = int(batch_size)

    def generate(self, asked: Sequence[tuple[Chat, Mapping[str, Any]]]) -> list[str]:
        """Returns the answer to each chat, up to what its settings have it end with."""
        for _, settings in asked:
            _check(settings)
        texts: list[str] = []
        for most, group in groupby(asked, lambda one: one[1].get("max_new_tokens", _MAX_NEW_TOKENS)):
            for part in self._batches(list(group)):
                replies = self.rebus.replies([chat for chat, _ in part], max_text_tokens=most)
                texts += [_ended(reply, settings) for reply, (_, settings) in zip(replies, part, strict=True)]
        return texts

    def log_likelihoods(self, asked: Sequence[tuple[Chat, str]]) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each text after its chat, and whether the model's answer begins with it.

        Spaces around a text, which tasks put before continuations, are no part of an answer.
        """
        results: list[tuple[float, bool]] = []
        for part in self._batches(asked):
            chats, texts = [chat for chat, _ in part], [text.strip() for _, text in part]
            likelihoods = self.rebus.log_likelihoods(chats, texts)
            replies = self.rebus.replies(chats, max_text_tokens=max(map(len, likelihoods)))
            said = [reply.strip().startswith(text) for reply, text in zip(replies, texts, strict=True)]
            results += [(float(each.sum()), same) for each, same in zip(likelihoods, said, strict=True)]
        return results

    def message(self, role: str, parts: Iterable[Any]) -> Message:
        """Returns a message of texts, and of pictures as such or as files."""
        if role not in ("user", "assistant"):
            raise ValueError(f"role must be user or assistant, got {role}")
        return Message(role, tuple(self._part(part) for part in parts))

    def _part(self, part: Any) -> str | Picture:
        if isinstance(part, str):
            return part
        if not isinstance(part, Image.Image | Path):
            raise ValueError(f"a part must be a text, a picture or the path of one, got {type(part).__name__}")
        return self.rebus.look(part)

    def _batches(self, asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
        for start in range(0, len(asked), self.batch_size):
            yield asked[start : start + self.batch_size]


def _content(part: Mapping[str, Any]) -> Any:
    """Returns the text, picture or path of a picture that a part of a message is."""
    if part["type"] == "text":
        return part["text"]
    if part["type"] != "image":
        raise ValueError(f"a part must be text or image, got {part['type']}")
    return Path(part["url"]) if isinstance(part["url"], str) else part["url"]


def _check(settings: Mapping[str, Any]) -> None:
    for name, value in _LIKELIEST.items():
        if settings.get(name) not in (value, None):
            raise ValueError(f"{name} must be {value}, since the likeliest text is said, got {settings[name]}")


def _ended(reply: str, settings: Mapping[str, Any]) -> str:
    """Returns a reply up to the first of the texts that end it."""
    until = settings.get("until") or ()
    for end in [until] if isinstance(until, str) else until:
        reply = reply.partition(end)[0] if end else reply
    return reply.strip()
