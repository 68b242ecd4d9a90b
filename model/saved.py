"""The folder of a saved model, and the checks that its parts belong together before any of them is read.

At the root a stock language model with its tokenizer; ``image_tokenizer/``, ``decoder/`` and ``vae/`` beside it; and
``rebus.json``, which says what they have in common and holds the SHA-256 of their weights.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rebus.model.drawing import DrawingSettings
from rebus.tokenizers.vocabulary import SpecialIds, Vocabulary

FORMAT = 1
DESCRIPTION = "rebus.json"
WEIGHTS = {
    "language_model": "model.safetensors",
    "text_tokenizer": "tokenizer.model",
    "image_tokenizer": "image_tokenizer/model.safetensors",
    "decoder": "decoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
"""The file of each part that holds what it has learned."""
PAINTER = ("decoder", "vae")
"""Parts that a model may lack: its image tokenizer paints then."""
_LIBRARIES = ("rebus-lm", "torch", "transformers", "diffusers")


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """What ``rebus.json`` says."""

    folder: Path
    """Where the model is."""
    hash: str
    """The first 16 hex digits of the SHA-256 of ``rebus.json``, and so of everything that was learned."""
    vocabulary: Vocabulary
    """Ids of text and codes."""
    max_positions: int
    """Ids that the language model can hold at a time."""
    image_size_px: int
    """Side of the pictures."""
    image_tokenizer_hash: str
    """That of the tokenizer whose codes the language model writes and the decoder paints."""
    caption_request: str
    """What the user says to have a picture described, as in training."""
    settings: DrawingSettings
    """How the model draws best."""
    weights: dict[str, str]
    """SHA-256 of the file of each part."""

    @staticmethod
    def open(folder: Path) -> "SavedModel":
        """Reads the description of a model and checks that its parts fit; reads no weights.

        Raises:
            ValueError: if there is no model, it is of another format, or its parts do not belong together.
        """
        try:
            return SavedModel._opened(folder)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} must describe itself as this version of Rebus does, got {error!r}") from error

    @staticmethod
    def _opened(folder: Path) -> "SavedModel":
        text = _read(folder, DESCRIPTION)
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"{folder}: format of {DESCRIPTION} must be {FORMAT}, got {values['format']}")
        config = json.loads(_read(folder, "config.json"))
        vocabulary = Vocabulary.from_dict(values["vocabulary"])
        if config["vocab_size"] != vocabulary.size:
            known, codes = vocabulary.size, sum(stream.size for stream in vocabulary.layout.streams)
            control = known - vocabulary.num_text - codes
            parts = f"{vocabulary.num_text} of text, {control} of control and {codes} of codes"
            got = config["vocab_size"]
            raise ValueError(f"{folder}: the language model must have {known} ids ({parts}), got vocab_size {got}")
        vocabulary.layout.check_one_size(f"the image tokenizer and decoder in {folder}")
        expected = values["image_tokenizer_hash"]
        trained_with = {"language model": config.get("image_tokenizer_hash")}
        if "decoder" in values["weights"]:
            trained_with["decoder"] = json.loads(_read(folder, "decoder/config.json"))["tokenizer_hash"]
        for part, got in trained_with.items():
            if got != expected:
                raise ValueError(f"{folder}: the {part} must be of image tokenizer {expected}, got {got}")
        return SavedModel(
            folder=folder,
            hash=hashlib.sha256(text.encode()).hexdigest()[:16],
            vocabulary=vocabulary,
            max_positions=config["max_position_embeddings"],
            image_size_px=values["image_size_px"],
            image_tokenizer_hash=expected,
            caption_request=values["caption_request"],
            settings=DrawingSettings(**values["settings"]),
            weights=values["weights"],
        )

    def path(self, part: str) -> Path:
        """Returns the folder of a part whose weights are those that ``rebus.json`` names.

        Raises:
            ValueError: if they are others, or none.
        """
        path = self.folder / weights_file(part, self.vocabulary)
        if part not in self.weights or not path.is_file():
            raise ValueError(f"{path} must be a part of the saved model, got no such file")
        got = file_hash(path)
        if got != self.weights[part]:
            expected = self.weights[part][:16]
            raise ValueError(f"{path} must have the SHA-256 {expected}... of {DESCRIPTION}, got {got[:16]}...")
        return path.parent


def describe(
    folder: Path, vocabulary: Vocabulary, image_size_px: int, caption_request: str, settings: DrawingSettings
) -> None:
    """Writes the description of a model whose parts all lie in the folder."""
    files = {part: folder / weights_file(part, vocabulary) for part in WEIGHTS}
    weights = {part: file_hash(file) for part, file in files.items() if part not in PAINTER or file.is_file()}
    values = {
        "format": FORMAT,
        "vocabulary": vocabulary.to_dict(),
        "image_size_px": image_size_px,
        "image_tokenizer_hash": weights["image_tokenizer"][:16],
        "caption_request": caption_request,
        "settings": asdict(settings),
        "weights": weights,
        "versions": versions(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(values, indent=2) + "\n")


def with_language_model(saved: SavedModel, language_model: Path, folder: Path) -> SavedModel:
    """Returns a copy of a model that has another language model, with its own text tokenizer; kept if it is there.

    Raises:
        ValueError: if the language model does not fit.
    """
    if not (folder / DESCRIPTION).is_file():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        for part in (path for path in saved.folder.iterdir() if path.is_dir()):
            shutil.copytree(part, folder / part.name, dirs_exist_ok=True)
        shutil.copytree(language_model, folder, dirs_exist_ok=True)
        describe(folder, saved.vocabulary, saved.image_size_px, saved.caption_request, saved.settings)
    return SavedModel.open(folder)


def weights_file(part: str, vocabulary: Vocabulary) -> str:
    """Returns the name of a part's file; the text tokenizer of a pretrained model has no model of SentencePiece."""
    pretrained = part == "text_tokenizer" and vocabulary.special != SpecialIds()
    return "tokenizer.json" if pretrained else WEIGHTS[part]


def versions() -> dict[str, str]:
    """Returns the installed versions of what decides over a picture."""
    return {name: version(name) for name in _LIBRARIES}


def _read(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        wanted = f"{folder} must be the folder of a saved model"
        raise ValueError(f"{wanted}, got {f'no {name} in it' if folder.is_dir() else 'no such folder'}")
    return path.read_text()


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
