"""The mean of the weights of several language models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rebus.train.assemble import AssembleConfig, assemble
from rebus.train.soup import main, soup


@pytest.fixture
def models(exports, tmp_path):
    """Three models that differ in their weights."""
    found = [tmp_path / str(number) for number in range(3)]
    for number, folder in enumerate(found):
        shutil.copytree(exports / "language_model", folder)
        weights = load_file(folder / "model.safetensors")
        changed = {name: value + number * torch.ones_like(value) for name, value in weights.items()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return found


def test_weights_are_the_mean_and_the_model_goes_with_the_other_parts(models, exports, tmp_path, capsys):
    main(["--language_models", *map(str, models), "--output", str(tmp_path / "mean")])
    assert capsys.readouterr().out == f"{tmp_path / 'mean'}: mean of 3 language models\n"
    mean, middle = (load_file(folder / "model.safetensors") for folder in (tmp_path / "mean", models[1]))
    assert mean.keys() == middle.keys()
    for name, value in mean.items():
        torch.testing.assert_close(value, middle[name].bfloat16())
    parts = {name: exports / name for name in ("image_tokenizer", "decoder", "vae")}
    assemble(AssembleConfig(**parts, language_model=tmp_path / "mean", output=tmp_path / "model"))


def test_models_that_differ_in_more_than_weights_are_refused(models, tmp_path):
    config = json.loads((models[2] / "config.json").read_text())
    (models[2] / "config.json").write_text(json.dumps({**config, "image_tokenizer_hash": "other"}))
    with pytest.raises(ValueError, match=r"2/config\.json must be the same as .*0/config\.json, got another or none"):
        soup(models, tmp_path / "mean")
    with pytest.raises(ValueError, match="must be at least two, got 1"):
        soup(models[:1], tmp_path / "mean")
    (models[1] / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="got another or none"):
        soup(models[:2], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
