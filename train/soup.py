r"""The mean of the weights of language models that were trained from the same one, such as from several seeds.

python -m rebus.train.soup --language_models runs/rl/0/export runs/rl/1/export runs/rl/2/export --output runs/soup

Runs from one model often end in one basin, in which the mean of their weights is better than each of them and draws as
fast as one. What comes out is an export as those of the stages, for ``rebus.train.assemble``.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time", https://arxiv.org/abs/2203.05482, sec. 2 (the uniform soup).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rebus.model.command_line import CommandParser
from rebus.train.checkpoint import write_folder


def soup(folders: Sequence[Path], output: Path) -> None:
    """Writes a stock language model whose weights are the mean of others, and their text tokenizer.

    Args:
        folders: exported language models, or saved models.
        output: folder of the new one; replaced if there is one.

    Raises:
        ValueError: if there are less than two, or they differ in more than their weights.
    """
    if len(folders) < 2:
        raise ValueError(f"language_models must be at least two, got {len(folders)}")
    first, *others = folders
    for folder in others:
        for name in _described_by(first) | _described_by(folder):
            if not _same(first / name, folder / name):
                raise ValueError(f"{folder / name} must be the same as {first / name}, got another or none")
    mean = _load(first)
    for number, folder in enumerate(others, start=2):
        _move(mean, _load(folder), 1 / number)

    def write(folder: Path) -> None:
        mean.bfloat16().save_pretrained(folder)
        for name in _described_by(first):
            shutil.copyfile(first / name, folder / name)

    write_folder(output, write)


@torch.no_grad()
def _move(mean: PreTrainedModel, other: PreTrainedModel, share: float) -> None:
    """Moves weights by a share of the way to others."""
    for own, new in zip(mean.parameters(), other.parameters(), strict=True):
        own.lerp_(new, share)


def _load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )


def _described_by(folder: Path) -> set[str]:
    """Returns the names of the files that must be those of all models: shapes, and what ids mean."""
    return {"config.json", *(path.name for path in folder.glob("tokenizer*"))}


def _same(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()


def main(argv: list[str] | None = None) -> None:
    """Averages the models that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--language_models", type=Path, nargs="+", required=True, help="exports of the same training")
    parser.add_argument("--output", type=Path, required=True, help="folder of the mean")
    options = parser.parse(argv)
    with parser.refusing():
        soup(options.language_models, options.output)
    print(f"{options.output}: mean of {len(options.language_models)} language models")


if __name__ == "__main__":
    main()
