import json
import math

import pytest
import torch
import torch.nn.functional as F

from rebus.evaluation import text_loss
from rebus.evaluation.text_loss import change, read_model
from rebus.model.extension import extend
from rebus.model.language_model import LanguageModelConfig
from rebus.tokenizers.tokens import CodeLayout, Stream

TEXT = "a cat and a dog on the red picture, yes. how many? " * 9
VOCABULARY_LAYOUT = CodeLayout("sequence", 4, (Stream("code", 50),))


@pytest.fixture(scope="module")
def vocabulary(text_tokenizer):
    return text_tokenizer.vocabulary(VOCABULARY_LAYOUT)


@pytest.fixture
def base(text_tokenizer, vocabulary):
    """A language model of text alone."""
    config = LanguageModelConfig(dim=24, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=28, max_positions=64)
    model = config.build_llama(vocabulary, text_tokenizer.num_pieces, torch.Generator().manual_seed(1)).eval()
    for parameter in model.parameters():
        parameter.data *= 5 if parameter.ndim > 1 else 1
    return model


def loss_of(model, text_tokenizer, text=TEXT, length=20):
    return text_loss.text_loss(model, text_tokenizer, text, length)


def test_windows_predict_each_id_once(base, text_tokenizer):
    ids = text_tokenizer.encode(TEXT)
    loss = loss_of(base, text_tokenizer)
    expected = []
    for start in range(0, len(ids), 19):
        window = torch.tensor([text_tokenizer.special.bos, *ids[start : start + 19]])
        with torch.no_grad():
            logits = base(window[None, :-1]).logits[0]
        expected.append(F.cross_entropy(logits, window[1:], reduction="sum").item())
    assert len(expected) > 8 and loss.num_tokens == len(ids) and loss.num_bytes == len(TEXT)
    assert list(loss.nats["text"]) == pytest.approx(expected, rel=1e-5)
    assert loss.nats["text"] == loss.nats["all"]
    figures = loss.figures()
    assert figures["text_nats_per_token"] == pytest.approx(sum(expected) / len(ids))
    assert figures["all_bits_per_byte"] == pytest.approx(sum(expected) / len(TEXT) / math.log(2))


def test_an_extension_keeps_text_and_costs_what_goes_to_the_new_ids(base, text_tokenizer, vocabulary):
    before = loss_of(base, text_tokenizer)
    extend(base, vocabulary, torch.Generator().manual_seed(0))
    after = loss_of(base, text_tokenizer)
    assert list(after.nats["text"]) == pytest.approx(list(before.nats["text"]))
    assert all(later > sooner for sooner, later in zip(before.nats["all"], after.nats["all"], strict=True))
    kept, spilt = change(before, after, "text"), change(before, after, "all")
    assert kept["change"] == pytest.approx(0, abs=1e-6) and 0 < spilt["low"] <= spilt["change"] <= spilt["high"]
    difference = after.figures()["all_nats_per_token"] - before.figures()["all_nats_per_token"]
    assert spilt["change"] == pytest.approx(difference) and spilt["windows"] == len(before.nats["all"])
    with torch.no_grad():
        base.model.embed_tokens.weight[: text_tokenizer.num_pieces] *= 2  # at random it was sure enough
    assert change(before, loss_of(base, text_tokenizer), "text")["low"] > 0


def test_command_reads_stock_folders_and_saved_models(base, text_tokenizer, vocabulary, saved_model, tmp_path, capsys):
    base.save_pretrained(tmp_path / "before")
    text_tokenizer.save(tmp_path / "before")
    (tmp_path / "text.txt").write_text(TEXT)
    capsys.readouterr()
    flags = ["--before", str(tmp_path / "before"), "--text", str(tmp_path / "text.txt"), "--length", "20", "--json"]
    text_loss.main([*flags, "--after", str(saved_model)])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["before"] == pytest.approx(loss_of(base, text_tokenizer).figures(), rel=1e-4)
    assert found["after"]["num_tokens"] == found["before"]["num_tokens"]
    assert found["text_change"]["change"] == pytest.approx(
        found["after"]["text_nats_per_token"] - found["before"]["text_nats_per_token"]
    )
    assert found["after"]["all_nats_per_token"] > found["after"]["text_nats_per_token"]
    with pytest.raises(SystemExit, match="2"):
        text_loss.main([*flags, "--after", str(tmp_path)])
    assert "must be the folder of a stock language model" in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_measured_is_refused(base, text_tokenizer, tmp_path):
    for text, length, message in (
        ("", 20, "text must have a character, got none"),
        ("a", 1, "length must be 2 to 64 positions, got 1"),
        ("a", 65, "length must be 2 to 64 positions, got 65"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_of(base, text_tokenizer, text, length)
    with pytest.raises(ValueError, match="tokens must be as many before and after"):
        change(loss_of(base, text_tokenizer), loss_of(base, text_tokenizer, TEXT + TEXT), "text")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a stock language model"):
        read_model(tmp_path)
    base.resize_token_embeddings(9)
    with pytest.raises(ValueError, match=f"model must know the {text_tokenizer.num_pieces} pieces"):
        loss_of(base, text_tokenizer)
