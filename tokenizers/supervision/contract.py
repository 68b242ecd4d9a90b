"""What every term reads and returns, so that a training may put any of them together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.tokenizers.image_tokenizer import Coded


@dataclass(frozen=True, eq=False)
class Taught:
    """A batch and what the tokenizer made of it: all that a term may read."""

    images: Float[Tensor, "batch 3 height width"]
    """In [0, 1]."""
    rebuilt: Float[Tensor, "batch 3 height width"]
    """The same pictures painted from their codes."""
    coded: Coded
    """Their codes, with features that carry gradients into encoder and quantizer."""
    captions: Int[Tensor, "batch length"]
    """Pieces of a text about each picture, padded."""
    regions: Int[Tensor, "batch cells"]
    """What each cell shows; 0 is the ground."""
    seeds: Int[Tensor, " batch"]
    """What each picture's random draws in a term follow from."""
    step: int = 0
    """Number of the training step, from 0 on."""
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    """What the tokenizer's layers put out that a term asks for, by their names."""
    last_weight: Tensor | None = None
    """Weight of the tokenizer's last layer, if a term asks for it."""
    earlier: Mapping[str, Tensor] = field(default_factory=dict)
    """The weighted terms computed so far."""


class Term(nn.Module, ABC):
    """One thing that the codes are taught, with the networks that teach it."""

    layers: tuple[str, ...] = ()
    """Names of the tokenizer's layers whose outputs the term reads, such as ``pixel_decoder.transformer.blocks.1``."""
    last_layer: str | None = None
    """Name of the tokenizer's layer whose weight the term reads, if it does."""
    compiles_whole: bool = True
    """Whether torch.compile may take the term and the tokenizer as one program; networks from elsewhere rarely fit."""

    @abstractmethod
    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns weighted losses by name: the same names at every step."""


class Frozen(nn.Module):
    """A network that teaches and does not learn: its weights get no gradients, and it is always in eval mode.

    Gradients may still pass through it to what it reads.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in eval mode."""
        del mode
        return super().train(False)

    def forward(self, *args: Any, **options: Any) -> Any:
        """Returns what the network does."""
        return self.network(*args, **options)
