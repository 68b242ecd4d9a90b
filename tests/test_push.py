"""Uploading a model; a stand-in takes the place of the Hub."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from rebus.train import push as command
from rebus.train.push import push


class Hub(HfApi):
    """Keeps what it is sent."""

    def __init__(self):
        super().__init__(endpoint="http://localhost:9", token="none")
        self.made, self.files = {}, {}

    def create_repo(self, repo_id, **options):
        if "/" not in repo_id:
            raise HFValidationError(f"Repo id must be in the form 'namespace/repo_name': '{repo_id}'")
        self.made[repo_id] = options
        return f"hub/{repo_id}"

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
        self.files[path_in_repo] = path_or_fileobj

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        for path in Path(folder_path).rglob("*"):
            if path.is_file() and any(path.match(pattern) for pattern in allow_patterns):
                self.files[str(path.relative_to(folder_path))] = path.read_bytes()


@pytest.fixture
def model(saved_model, tmp_path):
    return shutil.copytree(saved_model, tmp_path / "model")


def test_a_saved_model_is_sent_whole_and_nothing_else(model):
    (model / "optimizer.pt").write_bytes(b"no weights")
    hub = Hub()
    assert push(model, "me/rebus", private=True, api=hub) == "hub/me/rebus"
    assert hub.made == {"me/rebus": {"private": True, "exist_ok": True}}
    ours = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()} - {"optimizer.pt"}
    assert hub.files.keys() == ours | {"README.md"}
    assert hub.files["rebus.json"] == (model / "rebus.json").read_bytes()
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: rebus\n") and "# model" in card


def test_an_exported_language_model_keeps_its_own_card(model):
    (model / "rebus.json").unlink()
    (model / "README.md").write_text("mine")
    hub = Hub()
    push(model, "me/language", private=False, api=hub)
    assert hub.files["README.md"] == b"mine"


def test_what_is_not_whole_is_not_sent(model, tmp_path, capsys):
    hub = Hub()
    weights = model / "decoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match="decoder/model.safetensors must have the SHA-256"):
        push(model, "me/rebus", private=False, api=hub)
    with pytest.raises(ValueError, match="folder must be a saved model or an exported language model, got .*none"):
        push(tmp_path / "none", "me/rebus", private=False, api=hub)
    (model / "rebus.json").unlink()
    with pytest.raises(ValueError, match="repository must be one that you may write to, got rebus"):
        push(model, "rebus", private=False, api=hub)
    assert not hub.files
    with pytest.raises(SystemExit, match="2"):
        command.main([str(tmp_path / "none"), "me/rebus"])
    assert "folder must be a saved model" in capsys.readouterr().err
