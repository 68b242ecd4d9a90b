r"""What a language model still knows of text once pictures are in its vocabulary: its loss before and after.

python -m rebus.evaluation.text_loss --before runs/smollm2 --after runs/sft/export --text novel.txt

A folder is that of any stock causal language model with its tokenizer, or of a saved model. Each text is read in
windows that open as a sample does, each id is predicted once, and the loss is told in two ways:

``text``: among the ids of text alone, as if there were no others. What is worse here was forgotten.
``all``: among all ids. What is worse here alone is probability that has gone to codes, though none can follow.

Losses per byte compare models whose tokenizers differ; those per token do not.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rebus.evaluation.intervals import bootstrap
from rebus.model.command_line import CommandParser
from rebus.tokenizers.text_tokenizer import TextTokenizer, utf8

SCOPES = ("text", "all")
"""Among which ids an id is predicted."""
_ROWS = 8
"""Windows of a batch."""


@dataclass(frozen=True)
class TextLoss:
    """The losses of one model on one text, a number for each window of it."""

    nats: dict[str, tuple[float, ...]]
    """Negative log-likelihood of the ids of each window, by scope."""
    num_tokens: int
    """Ids of the text."""
    num_bytes: int
    """Bytes of the text in UTF-8."""

    def figures(self) -> dict[str, float]:
        """Returns the losses in nats per token and byte, and in bits per byte."""
        values: dict[str, float] = {}
        for scope, nats in self.nats.items():
            total = math.fsum(nats)
            values |= {
                f"{scope}_nats_per_token": total / self.num_tokens,
                f"{scope}_nats_per_byte": total / self.num_bytes,
                f"{scope}_bits_per_byte": total / self.num_bytes / math.log(2),
            }
        return {**values, "num_tokens": self.num_tokens, "num_bytes": self.num_bytes}


@torch.inference_mode()
def text_loss(model: PreTrainedModel, text_tokenizer: TextTokenizer, text: str, length: int) -> TextLoss:
    """Returns the losses of a model on a text.

    Args:
        model: in evaluation mode.
        text_tokenizer: whose pieces are the first ids of the model.
        text: any.
        length: positions of a window, the first of which opens it.

    Raises:
        ValueError: if the text is empty, a window is too short or too long for the model, or the model has fewer ids
            than there are pieces.
    """
    ids = text_tokenizer.encode(text)
    if not ids:
        raise ValueError("text must have a character, got none")
    most = getattr(model.config, "max_position_embeddings", length)
    if not 2 <= length <= most:
        raise ValueError(f"length must be 2 to {most} positions, got {length}")
    num_text, num_ids = text_tokenizer.num_pieces, model.config.vocab_size
    if num_ids < num_text:
        raise ValueError(f"model must know the {num_text} pieces of its tokenizer, got {num_ids} ids")
    nats: dict[str, list[float]] = {scope: [] for scope in SCOPES}
    for rows in _windows(ids, text_tokenizer.special.bos, length):
        logits = model(input_ids=rows[:, :-1].to(model.device), use_cache=False).logits.float().cpu()
        for scope, limit in zip(SCOPES, (num_text, num_ids), strict=True):
            nats[scope] += _window_nats(logits[..., :limit], rows[:, 1:]).tolist()
    told = {scope: tuple(each) for scope, each in nats.items()}
    return TextLoss(told, len(ids), len(utf8(text)))


def read_model(folder: Path) -> tuple[PreTrainedModel, TextTokenizer]:
    """Returns the stock language model of a folder and its text tokenizer; no code in there is run.

    Raises:
        ValueError: if there is no stock model with a tokenizer.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} must be the folder of a stock language model, got no config.json in it")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} must hold a stock language model: {error}") from error
    return model.eval(), TextTokenizer.load(folder)


def _windows(ids: Sequence[int], first: int, length: int) -> Iterator[Tensor]:
    """Yields batches of windows of one length; the shorter last one comes by itself."""
    parts = [[first, *ids[start : start + length - 1]] for start in range(0, len(ids), length - 1)]
    whole = [part for part in parts if len(part) == length]
    for start in range(0, len(whole), _ROWS):
        yield torch.tensor(whole[start : start + _ROWS])
    if len(whole) < len(parts):
        yield torch.tensor(parts[-1:])


def _window_nats(logits: Float[Tensor, "rows length ids"], targets: Tensor) -> Float[Tensor, " rows"]:
    likely = logits.log_softmax(dim=-1).gather(-1, rearrange(targets, "rows length -> rows length 1"))
    return -likely.double().sum(dim=(1, 2))


def change(before: TextLoss, after: TextLoss, scope: str) -> dict[str, float]:
    """Returns by how many nats per token the loss has grown, with its 95 % interval over windows.

    Raises:
        ValueError: if the two tokenizers have cut the text into others.
    """
    if before.num_tokens != after.num_tokens:
        raise ValueError(f"tokens must be as many before and after, got {before.num_tokens} and {after.num_tokens}")
    grown = [later - sooner for sooner, later in zip(before.nats[scope], after.nats[scope], strict=True)]
    score = bootstrap(grown, torch.Generator().manual_seed(0))
    share = score.n / before.num_tokens
    return {"change": score.score * share, "low": score.low * share, "high": score.high * share, "windows": score.n}


def main(argv: list[str] | None = None) -> None:
    """Compares the models that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="folder of the model as it was")
    parser.add_argument("--after", type=Path, required=True, help="folder of the model as it is now")
    parser.add_argument("--text", type=Path, required=True, help="file of text in UTF-8")
    parser.add_argument("--length", type=int, default=512, help="positions of a window (default: 512)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    losses, console = {}, Console()
    with parser.refusing():
        text = options.text.read_text(encoding="utf-8")
        for name in ("before", "after"):
            with console.status(f"reading {name}"):
                losses[name] = text_loss(*read_model(getattr(options, name)), text, options.length)
    before, after = losses["before"], losses["after"]
    found: dict[str, Any] = {name: loss.figures() for name, loss in losses.items()}
    if before.num_tokens == after.num_tokens:
        found |= {f"{scope}_change": change(before, after, scope) for scope in SCOPES}
    console.print(_table(found))
    if options.json:
        print(json.dumps({**found, "text": str(options.text), "length": options.length}))


def _table(found: dict[str, Any]) -> Table:
    title = f"{found['before']['num_bytes']:,} bytes of text"
    table = Table("loss", "before", "after", "change", "95 % interval", title=title)
    for name in found["before"]:
        if name.startswith(SCOPES):
            before, after = found["before"][name], found["after"][name]
            grown = found.get(name.replace("_nats_per_token", "_change"), {})
            interval = f"{grown['low']:+.4f} to {grown['high']:+.4f}" if grown else ""
            table.add_row(name.replace("_", " "), f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}", interval)
    return table


if __name__ == "__main__":
    main()
