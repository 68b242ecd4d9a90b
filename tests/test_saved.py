import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rebus.model.drawing import DrawingSettings
from rebus.model.saved import WEIGHTS, SavedModel
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.train.assemble import PRESETS, AssembleConfig, assemble, main

PARTS = ("language_model", "image_tokenizer", "decoder", "vae")


def config_of(exports, output):
    return AssembleConfig(**{name: exports / name for name in PARTS}, output=output)


@pytest.fixture
def copy(saved_model, tmp_path):
    shutil.copytree(saved_model, tmp_path / "model")
    return tmp_path / "model"


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_plain_transformers_opens_the_folder(saved_model, text_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(saved_model)
    tokenizer = AutoTokenizer.from_pretrained(saved_model)
    saved = SavedModel.open(saved_model)
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.vocab_size == saved.vocabulary.size
    text = "Draw a cat. <|picture|> what"
    assert tokenizer(text)["input_ids"] == text_tokenizer.encode(text)
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") == saved.vocabulary.assistant
    assert torch.isfinite(model(torch.tensor([tokenizer(text)["input_ids"]])).logits).all()


def test_all_weights_are_bfloat16_and_those_that_were_exported(saved_model, exports):
    for part in PARTS:
        exported = safetensors.torch.load_file(exports / part / WEIGHTS[part].split("/")[-1])
        kept = safetensors.torch.load_file(saved_model / WEIGHTS[part])
        assert kept.keys() == exported.keys()
        for name, value in kept.items():
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, exported[name].bfloat16())


def test_the_description_tells_what_is_needed_to_use_the_parts(saved_model, text_tokenizer):
    saved, tokenizer = SavedModel.open(saved_model), ImageTokenizer.load(saved_model / "image_tokenizer")
    assert saved.vocabulary.layout == tokenizer.layout and saved.vocabulary.num_text == text_tokenizer.num_pieces
    assert saved.image_tokenizer_hash == tokenizer.hash and saved.image_size_px == tokenizer.image_size
    assert saved.max_positions == 96 and saved.settings == DrawingSettings()
    assert TextTokenizer.load(saved.path("text_tokenizer")).encode("a cat") == text_tokenizer.encode("a cat")
    described = json.loads((saved_model / "rebus.json").read_text())
    assert set(described["weights"]) == set(WEIGHTS) and described["versions"]["torch"] == torch.__version__


def test_no_file_tells_where_the_parts_lay(saved_model, exports):
    for path in saved_model.rglob("*.json"):
        assert str(exports) not in path.read_text()


def test_the_hash_is_that_of_everything_learned_and_of_the_settings(saved_model, exports, tmp_path):
    again = assemble(config_of(exports, tmp_path / "again"))
    assert again.hash == SavedModel.open(saved_model).hash
    other = assemble(replace(config_of(exports, tmp_path / "other"), settings=DrawingSettings(guidance=7.0)))
    assert other.hash != again.hash and other.settings.guidance == 7.0


def test_assembling_replaces_the_folder_as_a_whole(exports, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "left_over.txt").write_text("old")
    assemble(config_of(exports, tmp_path / "model"))
    assert not (tmp_path / "model" / "left_over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_refused_and_nothing_is_left_behind(part, exports, tmp_path, capsys):
    flags = [f"--{name}={tmp_path / 'none' if name == part else exports / name}" for name in PARTS]
    with pytest.raises(SystemExit) as leaving:
        main([*flags, f"--output={tmp_path / 'model'}"])
    assert leaving.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_made(exports, tmp_path, capsys):
    flags = [f"--{name}={exports / name}" for name in PARTS]
    main([*flags, f"--output={tmp_path / 'model'}", "--settings.guidance=2.5", "--settings.top_k=9"])
    saved = SavedModel.open(tmp_path / "model")
    assert (saved.settings.guidance, saved.settings.top_k) == (2.5, 9)
    assert saved.hash in capsys.readouterr().out


def test_parts_that_do_not_belong_together_are_not_assembled(exports, tmp_path):
    shutil.copytree(exports, tmp_path / "parts")
    edit(tmp_path / "parts/decoder/config.json", lambda values: values.update(tokenizer_hash="0123456789abcdef"))
    with pytest.raises(ValueError, match="tokenizer_hash must be 0123456789abcdef, as in training, got"):
        assemble(config_of(tmp_path / "parts", tmp_path / "model"))


def test_a_language_model_with_another_vocabulary_is_not_assembled(exports, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(exports / "language_model")
    size = model.config.vocab_size
    shutil.copytree(exports, tmp_path / "parts")
    model.resize_token_embeddings(size + 2, mean_resizing=False)
    model.save_pretrained(tmp_path / "parts" / "language_model")
    with pytest.raises(ValueError, match=f"must have {size} ids .*, got vocab_size {size + 2}"):
        assemble(config_of(tmp_path / "parts", tmp_path / "model"))
    assert not list(tmp_path.glob("model*"))


def test_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none must be the folder of a saved model, got no such folder"):
        SavedModel.open(tmp_path / "none")
    with pytest.raises(ValueError, match="must be the folder of a saved model, got no rebus.json in it"):
        SavedModel.open(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("rebus.json", {"format": 9}, "format of rebus.json must be 1, got 9"),
        (
            "config.json",
            {"vocab_size": 7},
            "the language model must have 440 ids .421 of text, 4 of control and 15 of ",
        ),
        ("config.json", {"image_tokenizer_hash": "abc"}, "the language model must be of image tokenizer .*, got abc"),
        ("config.json", {"image_tokenizer_hash": None}, "the language model must be of image tokenizer .*, got None"),
        ("decoder/config.json", {"tokenizer_hash": "abc"}, "the decoder must be of image tokenizer .*, got abc"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(file, change, message, copy):
    edit(copy / file, lambda values: values.update(change))
    with pytest.raises(ValueError, match=message):
        SavedModel.open(copy)


def test_a_language_model_trained_with_another_image_tokenizer_is_not_assembled(exports, tmp_path):
    shutil.copytree(exports, tmp_path / "parts")
    edit(tmp_path / "parts/language_model/config.json", lambda values: values.update(image_tokenizer_hash="0123"))
    with pytest.raises(ValueError, match="the language model must be of image tokenizer [0-9a-f]{16}, got 0123"):
        assemble(config_of(tmp_path / "parts", tmp_path / "model"))


@pytest.mark.parametrize("part", WEIGHTS)
def test_other_or_truncated_weights_are_refused(part, copy):
    saved = SavedModel.open(copy)
    assert saved.path(part).is_dir()
    path = copy / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"must have the SHA-256 {saved.weights[part][:16]}... of rebus.json, got"):
        saved.path(part)
    path.unlink()
    with pytest.raises(ValueError, match="must be a part of the saved model, got no such file"):
        saved.path(part)


def test_the_preset_reads_what_the_stages_export():
    assert {name: getattr(PRESETS["mini"](), name).parts[-1] for name in PARTS} == dict.fromkeys(PARTS, "export")
