"""What every layout takes and returns: which positions a picture's codes take, and how features reach them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.quantizers.contract import Quantized, Quantizer
from rebus.tokenizers.tokens import CodeLayout, Stream


@dataclass(frozen=True, eq=False)
class Positions:
    """Features at the positions of a picture, ready to be quantized."""

    features: Float[Tensor, "batch positions dim"]
    mask: Bool[Tensor, "batch positions"]
    """Which positions a picture holds: always its first ones."""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """Terms that the layout itself adds to the training, by name and weighted, such as that of the share kept."""


class Layout(nn.Module, ABC):
    """Brings patch features to code positions, and quantized features to the places where a decoder reads them.

    Most layouts quantize every position by itself and hand the result on as it is; they fill in ``forward`` alone.
    """

    on_grid: bool = False
    """Whether ``arrange`` puts features on the finest grid of patches, cell by cell; if not, they have no place."""

    @abstractmethod
    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""

    @abstractmethod
    def forward(self, patches: Patches, lengths: Int[Tensor, " batch"] | None = None) -> Positions:
        """Returns the features of each position.

        Args:
            patches: features of the encoder.
            lengths: how many positions to keep of each picture, as ``draw_lengths`` said; all by default.
        """

    def quantize(
        self,
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "batch positions"],
        quantizer: Quantizer,
    ) -> tuple[Quantized, Bool[Tensor, "batch places"]]:
        """Returns ids of the positions with features as ``arrange`` would put them, and which of these count."""
        quantized = quantizer(features, mask)
        arranged, arranged_mask = self.arrange(quantized.features, mask)
        return Quantized(arranged, quantized.ids, quantized.losses, quantized.stats), arranged_mask

    def arrange(
        self, codes: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"]
    ) -> tuple[Float[Tensor, "batch places arranged_dim"], Bool[Tensor, "batch places"]]:
        """Returns what a decoder reads of the features that codes stand for, and which of it counts."""
        return codes, mask

    def arranged_dim(self, code_dim: int) -> int:
        """Returns the width of what ``arrange`` returns for codes of a width."""
        return code_dim

    def draw_lengths(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"] | None:
        """Returns how many positions a training step keeps of each picture; None if that is not drawn."""
        del batch, generator
        return None


def first_positions(lengths: Int[Tensor, " batch"], num_positions: int) -> Bool[Tensor, "batch positions"]:
    """Returns True at the first ``lengths[i]`` positions of picture i."""
    return torch.arange(num_positions, device=lengths.device) < lengths[:, None]
