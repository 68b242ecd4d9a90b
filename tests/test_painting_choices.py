"""What a saved model gives to its decoder beside the codes: the text that asked for the picture, and its size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rebus.data.samples import Message
from rebus.generate import main
from rebus.model.decoder import DecoderConfig
from rebus.model.rebus import Rebus
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_condition import TextConditionConfig
from rebus.train.assemble import AssembleConfig, assemble


@pytest.fixture(scope="module")
def reading_model(exports, text_tokenizer, tmp_path_factory):
    """A saved model whose decoder reads a text and paints 24 or 48 px."""
    folder = tmp_path_factory.mktemp("reading")
    tokenizer = ImageTokenizer.load(exports / "image_tokenizer")
    text = TextConditionConfig(num_pieces=421, length=7, dim=16, depth=1, num_heads=2, in_encoder=False)
    sizes = {"latent_channels": 3, "latent_sizes": ((12, 12), (24, 24)), "patch": 4, "dim": 20, "num_heads": 2}
    torch.manual_seed(0)
    decoder = DecoderConfig(**sizes, depth=1, text=text).build(tokenizer.layout, tokenizer.hash)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # untrained, no text would reach the picture
    decoder.text.pieces = text_tokenizer
    decoder.save(folder / "decoder")
    parts = {name: exports / name for name in ("language_model", "image_tokenizer", "vae")}
    assemble(AssembleConfig(**parts, decoder=folder / "decoder", output=folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def rebus(reading_model):
    return Rebus.load(reading_model)


def test_a_decoder_that_reads_is_told_the_prompt(rebus):
    drawn = rebus.draw("a cat", seed=3)[0]
    painted = [rebus.paint(drawn.tokens, text=text, seed=3)[0] for text in (["a cat"], ["two dogs"], None)]
    same = [np.array_equal(np.asarray(one.image), np.asarray(drawn.image)) for one in painted]
    assert same == [True, False, False]


def test_what_is_said_of_another_picture_does_not_tell_what_the_new_one_shows(rebus):
    shown = rebus.look(rebus.draw("a cat")[0].image)
    changed = rebus.draw(Message("user", (shown, "make it red")), seed=3)[0]
    untold = rebus.paint(changed.tokens, seed=3)[0]
    assert np.array_equal(np.asarray(changed.image), np.asarray(untold.image))


def test_a_picture_has_the_size_that_was_asked_for(rebus):
    small, large = (rebus.draw("a cat", seed=3, **size)[0] for size in ({}, {"height": 48, "width": 48}))
    assert (small.image.size, large.image.size) == ((24, 24), (48, 48))
    assert small.tokens.ids.equal(large.tokens.ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 48}, "height and width must be given both or neither, got 48 and None"),
        ({"height": 30, "width": 30}, "size must be one of 24 x 24, 48 x 48 px, got 30 x 30"),
        ({"height": 48, "width": 48, "painter": "pixels"}, "height must be left out where painter is pixels"),
    ],
)
def test_a_size_that_cannot_be_painted_is_refused(settings, message, rebus):
    with pytest.raises(ValueError, match=message):
        rebus.draw("a cat", **settings)


def test_a_picture_is_painted_again_from_its_record(reading_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--height", "48", "--width", "48", "--seed", "3", "--model", str(reading_model)]
    main(["--prompt", "a cat", "--output", "cat.png", *size])
    main(["--from-tokens", "cat.json", "--output", "again.png", *size])
    assert Path("again.png").read_bytes() == Path("cat.png").read_bytes()
    record = json.loads(Path("cat.json").read_text())
    assert (record["settings"]["height"], record["settings"]["width"]) == (48, 48)
    Path("cat.json").write_text(json.dumps({**record, "prompt": "two dogs"}))
    main(["--from-tokens", "cat.json", "--output", "other.png", *size])
    assert Path("other.png").read_bytes() != Path("cat.png").read_bytes()
