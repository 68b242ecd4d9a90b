import sys
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from rebus.data.samples import Message, Picture
from rebus.model.rebus import Rebus
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

LAYOUT = CodeLayout("sequence", 1, (Stream("code", 999),))
SETTINGS = {"max_new_tokens": 5, "until": ["\n\n"], "do_sample": False, "temperature": 0}


class Lmms:
    """What lmms-eval 0.7.3 gives its models."""

    def __init__(self):
        self.task_dict = {}


@dataclass(frozen=True)
class ModelManifest:
    """That of lmms-eval 0.7.3."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Echo:
    """A model that repeats its chat, pictures as their widths, and then goes on."""

    def __init__(self):
        self.calls = []

    def look(self, image):
        width = 7 if not isinstance(image, Image.Image) else image.width
        return Picture(tokens=Tokens(torch.tensor([[[width]]]), torch.tensor([1]), LAYOUT))

    def replies(self, chats, *, max_text_tokens):
        self.calls.append((len(chats), max_text_tokens))
        return [" ".join(map(told, chat)) + "\n\nand so on" for chat in chats]

    def log_likelihoods(self, chats, texts):
        return [torch.full((len(text),), -0.5) for text in texts]


def told(message: Message):
    parts = (part if isinstance(part, str) else f"[{part.tokens.ids.item()}]" for part in message.parts)
    return f"{message.role}: {' '.join(parts)}"


@pytest.fixture
def module(monkeypatch):
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    fakes = {name: ModuleType(name) for name in names}
    fakes["lmms_eval.api.model"].lmms = Lmms
    fakes["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delitem(sys.modules, "rebus.evaluation.lmms_eval_model", raising=False)
    monkeypatch.setattr(Rebus, "load", lambda folder, **settings: Echo())
    yield import_module("rebus.evaluation.lmms_eval_model")
    del sys.modules["rebus.evaluation.lmms_eval_model"]  # its base class is no real one


def examined(kind, documents, **arguments):
    model = kind(pretrained="somewhere", **arguments)
    model.task_dict["task"] = {"test": documents}
    return model


def request(*arguments):
    return SimpleNamespace(args=(*arguments, "task", "test"))


def picture(width):
    return Image.new("RGB", (width, 4))


def test_entry_point_names_classes_that_lmms_eval_takes(module):
    from rebus.evaluation.lmms_eval_manifest import manifest

    made = manifest()
    assert made.model_id == "rebus"
    for path, is_simple in ((made.chat_class_path, False), (made.simple_class_path, True)):
        assert path.startswith("rebus.evaluation.lmms_eval_model.")
        found = getattr(module, path.rsplit(".", 1)[1])
        assert issubclass(found, Lmms) and found.is_simple is is_simple
    declared = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared == {"lmms_eval.models": {"rebus": f"{manifest.__module__}:{manifest.__name__}"}}


def test_chats_keep_the_order_of_texts_and_pictures(module, tmp_path):
    picture(5).save(tmp_path / "a.png")

    def messages(document):
        shown = [{"type": "text", "text": "this"}, {"type": "image", "url": picture(document)}]
        asked = [{"type": "image", "url": str(tmp_path / "a.png")}, {"type": "text", "text": "or that?"}]
        return [
            {"role": "user", "content": shown},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
            {"role": "user", "content": asked},
        ]

    model = examined(module.RebusChat, [11, 13, 17], batch_size="2", max_batch_size=64)
    requests = [request("", messages, SETTINGS, index) for index in range(3)]
    said = model.generate_until(requests)
    assert said == [f"user: this [{width}] assistant: yes user: [7] or that?" for width in (11, 13, 17)]
    assert model._examined.rebus.calls == [(2, 5), (1, 5)]


def test_pictures_come_before_a_simple_text_and_limits_are_kept_apart(module):
    model = examined(module.RebusSimple, [3, 4], batch_size=2)
    several = [SETTINGS, {**SETTINGS, "max_new_tokens": 9, "until": "and"}]
    requests = [
        request("what?", settings, lambda width: [picture(width), picture(9)], index)
        for index, settings in enumerate(several)
    ]
    assert model.generate_until(requests) == ["user: [3] [9] what?", "user: [4] [9] what?"]
    assert model._examined.rebus.calls == [(1, 5), (1, 9)]
    assert model.generate_until([request("what?", {}, None, 0)]) == ["user: what?\n\nand so on"]


def test_likelihoods_are_sums_and_tell_what_would_be_said(module):
    model = examined(module.RebusSimple, ["user: [5]", "a dog"], batch_size=2)
    requests = [
        request("what?", wanted, lambda _: [picture(5)], index)
        for index, wanted in ((0, " user: [5] what?"), (0, lambda document: document), (1, lambda document: document))
    ]
    assert model.loglikelihood(requests) == [(-0.5 * 15, True), (-0.5 * 9, True), (-0.5 * 5, False)]


def test_what_cannot_be_done_is_refused(module):
    for arguments, message in (
        ({"batch_size": "auto"}, "batch_size must be a number from 1 on, got auto"),
        ({"batch_size": 0}, "batch_size must be a number from 1 on, got 0"),
        ({"pretrainde": "x"}, "model_args must be of pretrained, device and dtype, got pretrainde"),
    ):
        with pytest.raises(ValueError, match=message):
            module.RebusSimple(pretrained="somewhere", **arguments)
    chat = examined(module.RebusChat, ["x"])
    text = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    for messages, settings, message in (
        (text, {"num_beams": 3}, "num_beams must be 1, since the likeliest text is said, got 3"),
        (text, {"do_sample": True}, "do_sample must be False"),
        ([{**text[0], "role": "system"}], {}, "role must be user or assistant, got system"),
        ([{"role": "user", "content": [{"type": "video", "url": "a"}]}], {}, "a part must be text or image, got video"),
        ([{"role": "user", "content": [{"type": "image", "url": 3}]}], {}, "or the path of one, got int"),
    ):
        with pytest.raises(ValueError, match=message):
            chat.generate_until([request("", lambda _, told=messages: told, settings, 0)])
    with pytest.raises(NotImplementedError, match="run it with --force_simple"):
        chat.loglikelihood([])
