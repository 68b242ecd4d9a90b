"""What every layout takes and returns: which positions a picture's codes take, and how features reach them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.quantizers.contract import Quantizer
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream


@dataclass(frozen=True, eq=False)
class Extras:
    """What a layout may need beside the patches; most need little of it."""

    lengths: Int[Tensor, " batch"] | None = None
    """How many positions to keep of each picture, as ``draw_lengths`` said; None leaves it to the layout."""
    noise: Float[Tensor, "batch numbers"] | None = None
    """What ``draw_noise`` said; None leaves nothing to chance."""
    errors: Float[Tensor, " batch"] | None = None
    """How far the pictures painted from those lengths were from the true ones, where a layout learns from it."""
    code: Callable[[Tensor], Tensor] | None = None
    """Takes features to codes and back, as will be done with those that the layout returns, but teaches no code."""


NO_EXTRAS = Extras()


@dataclass(frozen=True, eq=False)
class Positions:
    """Features at the positions of a picture, ready to be quantized."""

    features: Float[Tensor, "batch positions dim"]
    mask: Bool[Tensor, "batch positions"]
    """Which positions a picture holds: always its first ones."""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """Terms that the layout itself adds to the training, by name and weighted, such as that of the share kept."""


@dataclass(frozen=True, eq=False)
class Arranged:
    """Codes of the positions, and what a decoder reads of them."""

    ids: Int[Tensor, "batch positions streams"]
    features: Float[Tensor, "batch places dim"]
    """What the codes stand for, as ``arrange`` puts it; gradients pass straight through the quantizer."""
    mask: Bool[Tensor, "batch places"]
    """Which features count."""
    losses: Mapping[str, Tensor]
    """Terms of the quantizer, by name and weighted."""
    stats: dict[str, Tensor]
    """Figures to log, detached."""


class Layout(nn.Module, ABC):
    """Brings patch features to code positions, and quantized features to the places where a decoder reads them.

    Most layouts quantize every position by itself and hand the result on as it is; they fill in ``forward`` alone.
    """

    on_grid: bool = False
    """Whether ``arrange`` puts features on the finest grid of patches, cell by cell; if not, they have no place."""
    reads_context: bool = False
    """Whether the positions depend on ``patches.context``."""
    learns_from_errors: bool = False
    """Whether training shows each batch twice: with drawn lengths, and again with the errors that these left."""

    @abstractmethod
    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""

    @abstractmethod
    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of each position."""

    def quantize(
        self,
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "batch positions"],
        quantizer: Quantizer,
        extras: Extras = NO_EXTRAS,
    ) -> Arranged:
        """Returns ids of the positions, and what a decoder reads of them."""
        del extras
        quantized = quantizer(features, mask)
        return Arranged(quantized.ids, *self.arrange(quantized.features, mask), quantized.losses, quantized.stats)

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

    def draw_noise(self, batch: int, generator: torch.Generator) -> Float[Tensor, "batch numbers"] | None:
        """Returns the numbers, even in [0, 1), by which a training step decides for each picture; None if by none."""
        del batch, generator
        return None


def first_positions(lengths: Int[Tensor, " batch"], num_positions: int) -> Bool[Tensor, "batch positions"]:
    """Returns True at the first ``lengths[i]`` positions of picture i."""
    return torch.arange(num_positions, device=lengths.device) < lengths[:, None]


def all_positions(features: Float[Tensor, "batch positions dim"]) -> Bool[Tensor, "batch positions"]:
    """Returns True at every position."""
    return torch.ones_like(features[..., 0], dtype=torch.bool)


def finest_cells(patches: Patches) -> Float[Tensor, "batch dim rows columns"]:
    """Returns the features on the finest grid, as a map."""
    rows, columns = patches.grids[-1]
    return rearrange(patches.features[:, -rows * columns :], "b (h w) d -> b d h w", h=rows)


def with_context(patches: Patches) -> Float[Tensor, "batch features dim"]:
    """Returns all features that queries may read: those of the patches, then those of the context if there is one."""
    return patches.features if patches.context is None else torch.cat([patches.features, patches.context], dim=1)


def one_grid(grids: tuple[tuple[Grid, ...], ...]) -> Grid:
    """Returns the finest grid of pictures of one size.

    Raises:
        ValueError: if there are several: a sequence of codes does not say how large its picture is.
    """
    finest = sorted({each[-1] for each in grids})
    if len(finest) != 1:
        raise ValueError(f"image_sizes_px must be one for a sequence of codes, got those of the grids {finest}")
    return finest[0]


def any_length(num_positions: int) -> tuple[Grid, ...]:
    """Returns the ``grids`` of a sequence of which each picture has as many positions as it takes."""
    return tuple((1, length) for length in range(1, num_positions + 1))


@contextmanager
def standing_still(quantizer: Quantizer) -> Iterator[None]:
    """Lets a quantizer code without learning from what it codes."""
    assert isinstance(quantizer, nn.Module)
    was_training = quantizer.training
    quantizer.eval()
    try:
        yield
    finally:
        quantizer.train(was_training)
