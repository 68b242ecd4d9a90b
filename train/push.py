"""Uploads a saved model, or a language model that training exported, to the Hugging Face Hub.

python -m rebus.train.push runs/mini OWNER/NAME --private

The folder is in the layout of the Hub as it is. It is looked at first: a saved model must be whole, with the weights
that it describes. Only configs, tokenizers and weights in safetensors are sent, and a model card if there is none. Log
in with `hf auth login`, or set HF_TOKEN.
"""

from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from rebus.model.command_line import CommandParser
from rebus.model.saved import DESCRIPTION, SavedModel

_CARD = "README.md"
_SENT = ["*.json", "*.safetensors", "*.model", "*.txt", _CARD]


def push(folder: Path, repository: str, *, private: bool, api: HfApi) -> str:
    """Uploads a folder; returns the address of its repository, which is made if there is none.

    Args:
        folder: of a saved model, or of a language model that training exported.
        repository: ``OWNER/NAME``.
        private: whether a repository that is made is to be private.
        api: that of the Hub.

    Raises:
        ValueError: if the folder holds no whole model, or the Hub refuses.
    """
    card = model_card(folder)
    message = f"Upload {folder.resolve().name}"
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        if not (folder / _CARD).exists():
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo=_CARD, repo_id=repository)
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=_SENT, commit_message=message)
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"repository must be one that you may write to, got {repository}: {error}") from error
    return str(address)


def model_card(folder: Path) -> str:
    """Returns what the Hub shows of a model that has no card of its own, once it is seen to be whole.

    Raises:
        ValueError: if it is not.
    """
    whole = (folder / DESCRIPTION).is_file()
    if whole:
        saved = SavedModel.open(folder)
        for part in saved.weights:
            saved.path(part)
    elif not ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
        raise ValueError(f"folder must be a saved model or an exported language model, got {folder}")
    data = ModelCardData(library_name="rebus" if whole else "transformers", tags=["multimodal", "any-to-any"])
    use = 'Rebus.load("FOLDER")' if whole else 'AutoModelForCausalLM.from_pretrained("FOLDER")'
    text = f"A model of Rebus, which reads and writes text and pictures as one sequence of tokens: `{use}`."
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {folder.resolve().name}\n\n{text}\n"))


def main(argv: list[str] | None = None) -> None:
    """Uploads what the command line says."""
    parser = CommandParser(__doc__)
    parser.add_argument("folder", type=Path, help="a saved model, or an exported language model")
    parser.add_argument("repository", help="OWNER/NAME on the Hub; made if there is none")
    parser.add_argument("--private", action="store_true", help="whether a new repository is private")
    options = parser.parse(argv)
    with parser.refusing():
        print(push(options.folder, options.repository, private=options.private, api=HfApi()))


if __name__ == "__main__":
    main()
