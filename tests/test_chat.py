import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rebus.chat import main
from rebus.data.samples import Picture
from rebus.model.conversation import Conversation
from rebus.model.rebus import Rebus

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder with a picture in it."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.png")
    return tmp_path


@pytest.fixture
def drawing(monkeypatch):
    """Makes the model answer everything with a word, a drawn picture and another word, and remembers what it read."""
    heard = []

    def stream(self, messages, *, seed):
        heard.append((list(messages), seed))
        yield "He"
        yield "re: "
        yield Picture(tokens=self.draw("a cat", seed=seed)[0].tokens)
        yield " Well?"

    monkeypatch.setattr(Rebus, "stream", stream)
    return heard


@pytest.fixture
def run(saved_model, capsys, monkeypatch):
    def call(*flags, typed=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        main([*flags, "--model", str(saved_model)])
        return capsys.readouterr().out

    return call


def test_a_question_and_a_caption_are_answered_in_words(run, saved_model):
    rebus, image = Rebus.load(saved_model), Image.open("cat.png")
    asked = ("--image", "cat.png", "--task", "vqa", "--prompt", "what is there")
    assert run(*asked) == rebus.answer(image, "what is there") + "\n"
    assert run("--image", "cat.png", "--task", "caption") == rebus.caption(image) + "\n"


def test_one_answer_may_hold_pictures(run, drawing):
    assert run("--image", "cat.png", "--prompt", "draw another").splitlines() == [
        "Here: ",
        "outputs/chat/001.png",
        "Well?",
    ]
    ((messages, seed),) = drawing
    assert [type(part) for part in messages[0].parts] == [Picture, str] and seed == 0
    record = json.loads(Path("outputs/chat/001.json").read_text())
    assert record["prompt"] == "draw another"
    with Image.open("outputs/chat/001.png") as image:
        assert image.size == (24, 24)


def test_a_prompt_alone_is_answered(run):
    assert run("--prompt", "how many")


def test_a_chat_goes_on_with_what_was_said_and_drawn(run, drawing):
    out = run("--output", "drawn", "--seed", "7", typed="draw a cat\n\n/image cat.png\nand this?\n/reset\nagain\n")
    assert out.splitlines() == [f for n in (1, 2, 3) for f in ("Here: ", f"drawn/00{n}.png", "Well?")]
    first, second, third = drawing
    assert [message.role for message in second[0]] == ["user", "assistant", "user"]
    assert second[0][1].parts[1].tokens is not None and isinstance(second[0][2].parts[0], Picture)
    assert [len(heard) for heard, _ in drawing] == [1, 3, 1] and [seed for _, seed in drawing] == [7, 8, 9]
    assert Path("drawn/001.png").read_bytes() != Path("drawn/002.png").read_bytes()


def test_the_chat_and_its_newest_picture_are_saved(run, drawing):
    run(typed="/image cat.png\ndraw this\n/save chat.json\n/save newest.png\n/quit\nnot heard\n")
    assert json.loads(Path("chat.json").read_text()) == [
        {"role": "user", "parts": [{"picture": "cat.png"}, "draw this"]},
        {"role": "assistant", "parts": ["Here: ", {"picture": "outputs/chat/001.png"}, " Well?"]},
    ]
    assert Path("newest.png").read_bytes() == Path("outputs/chat/001.png").read_bytes()
    assert len(drawing) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/image none.png", "none.png must be a picture, got no such file"),
        ("/save chat.txt", "file must end in .json (the chat) or .png (the newest drawn picture), got chat.txt"),
        ("/save", "file must end in .json (the chat) or .png"),
        ("/save a.png", "a.png must be for a drawn picture, got none drawn yet"),
        ("/sing", "unknown command /sing; /help lists them all"),
        ("Z" * 300, "a prompt must be at most"),
        ("/help", "/image PATH"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_chat_goes_on(line, told, run):
    assert told in run(typed=f"{line}\n/save chat.json\n")
    assert Path("chat.json").read_text() == "[]\n"


def test_what_is_too_long_to_say_is_not_remembered(saved_model):
    conversation = Conversation(Rebus.load(saved_model), Path("drawn"), seed=0)
    conversation.show(Path("cat.png"))
    with pytest.raises(ValueError, match="a prompt must be at most 85 tokens long"):
        list(conversation.say("Z" * 300))
    conversation.save(Path("chat.json"))
    assert Path("chat.json").read_text() == "[]\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--image", "none.png", "--prompt", "what"), "none.png must be a picture, got no such file"),
        (("--image", "cat.png"), "--image must come with --prompt or with --task caption, got neither"),
        (
            ("--image", "cat.png", "--task", "vqa"),
            "--image must come with --prompt or with --task caption, got neither",
        ),
        (("--task", "caption"), "--task caption must come with --image, got none"),
        (("--image", "cat.png", "--task", "caption", "--prompt", "a"), "--task caption must come without --prompt"),
        (("--image", "cat.png", "--task", "sing"), "argument --task: invalid choice: 'sing' (choose from"),
        (("--prompt", "  "), "--prompt must hold text, got an empty one"),
        (("--prompt", "Z" * 300), "a prompt must be at most 85 tokens long, got 30"),
        (("--iamge", "cat.png"), "unknown flag --iamge; did you mean --image?"),
    ],
)
def test_what_cannot_be_done_is_refused(flags, message, run, capsys, workplace):
    with pytest.raises(SystemExit) as leaving:
        run(*flags)
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.splitlines()) == 1 and out == ""
    assert [path.name for path in workplace.iterdir()] == ["cat.png"]


@pytest.mark.slow
def test_the_command_itself_refuses_an_unknown_model(workplace):
    command = [sys.executable, str(ROOT / "chat.py"), "--prompt", "hello", "--model", "none"]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    result = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "chat.py: none must be the folder of a saved model, got no such folder\n"
