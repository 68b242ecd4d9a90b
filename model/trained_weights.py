"""What of a language model trains: all of it, adapters of low rank, or the rows of new ids alone.

Adapters and rows are those of PEFT, put into the stock model in place: the model keeps its class and its names, and
``lm_head.weight`` is the head with the rows as they are being trained. What is saved is merged into a stock model.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from rebus.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from peft import PeftModel

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The matrices of a block, by the names that all Llama-like classes give them."""


@dataclass(frozen=True, kw_only=True)
class FullTraining:
    """Every weight trains."""

    def prepare(self, model: PreTrainedModel, vocabulary: Vocabulary, seed: int) -> "TrainedModel":
        """Returns the model as it is."""
        del vocabulary, seed
        return TrainedModel(model)


@dataclass(frozen=True, kw_only=True)
class NewRowsTraining:
    """Only the rows of control tokens, sizes and codes train, in the embedding and in the head.

    Source: Chern et al., "ANOLE: An Open, Autoregressive, Native Large Multimodal Models for Interleaved Image-Text
    Generation", https://arxiv.org/abs/2407.06135, which trains the rows of pictures in the head.
    """

    def prepare(self, model: PreTrainedModel, vocabulary: Vocabulary, seed: int) -> "TrainedModel":
        """Returns the model with all else frozen; it computes what it did before."""
        from peft.utils.constants import DUMMY_TARGET_MODULES  # the adapter of no layer

        return _adapted(model, vocabulary, seed, rank=1, alpha=1.0, dropout=0.0, targets=DUMMY_TARGET_MODULES)


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """Adapters of low rank train in some layers, and with them the rows of control tokens, sizes and codes."""

    rank: int = 16
    """Of the adapters."""
    alpha: float = 32.0
    """An adapter's output is multiplied by this over its rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that are left out at random, in [0, 1)."""
    targets: tuple[str, ...] = LINEAR_LAYERS
    """Names of the layers that get an adapter, in all blocks."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank must be at least 1 and alpha positive, got {self.rank} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not self.targets or not set(self.targets) <= set(LINEAR_LAYERS):
            raise ValueError(f"targets must be some of {', '.join(LINEAR_LAYERS)}, got {self.targets}")

    def prepare(self, model: PreTrainedModel, vocabulary: Vocabulary, seed: int) -> "TrainedModel":
        """Returns the model with all else frozen; it computes what it did before."""
        options = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout}
        return _adapted(model, vocabulary, seed, **options, targets=list(self.targets))


TrainingChoice = FullTraining | NewRowsTraining | LoraTraining
ALL_WEIGHTS = FullTraining()


class TrainedModel:
    """A language model in training, and how it becomes a stock one."""

    def __init__(self, model: PreTrainedModel, adapter: "PeftModel | None" = None) -> None:
        """Takes the model that trains, and PEFT's view of it if there are adapters in it."""
        self.model, self._adapter = model, adapter

    def stock(self) -> PreTrainedModel:
        """Returns a stock model that computes the same: a copy in which adapters are merged, or else the model."""
        return self.model if self._adapter is None else deepcopy(self._adapter).merge_and_unload()

    def stock_copy(self) -> PreTrainedModel:
        """Returns a stock model that computes the same, and whose weights are no others'."""
        stock = self.stock()  # with adapters a copy, and one with hooks that cannot be copied again
        return deepcopy(stock) if stock is self.model else stock

    def reference(self) -> Callable[[], AbstractContextManager[PreTrainedModel]]:
        """Returns what gives the model as it is before the training, at any time in it.

        That is the model with its adapters off; where all weights train, a copy made now.
        """
        if self._adapter is not None:
            return self._without_adapters
        copy = deepcopy(self.model).requires_grad_(False).eval()
        return lambda: nullcontext(copy)

    @contextmanager
    def _without_adapters(self) -> Iterator[PreTrainedModel]:
        assert self._adapter is not None
        with self._adapter.disable_adapter():
            yield self.model

    def save_adapter(self, folder: Path) -> None:
        """Writes what PEFT reads on top of the base, once that has as many rows; nothing if all weights train."""
        if self._adapter is not None:
            self._adapter.save_pretrained(str(folder), save_embedding_layers=False)


def _adapted(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    seed: int,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: list[str] | str,
) -> TrainedModel:
    from peft import LoraConfig, get_peft_model  # takes seconds, and most models train without

    new_rows = list(range(vocabulary.num_text, vocabulary.size))
    matrices = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # PEFT says int and takes any number
        lora_dropout=dropout,
        target_modules=targets,
        trainable_token_indices={matrix: new_rows for matrix in matrices},
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)  # PEFT draws the adapters from the global generator,
        warnings.simplefilter("ignore", FutureWarning)  # and asks transformers by a name that will go
        adapter = get_peft_model(model, config)
    return TrainedModel(model, adapter)
