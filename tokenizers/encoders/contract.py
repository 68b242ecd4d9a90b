"""What every encoder takes and returns, so that one may replace another by a config."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from rebus.tokenizers.tokens import Grid

if TYPE_CHECKING:
    from rebus.tokenizers.encoders.choice import EncoderConfig


@dataclass(frozen=True, eq=False)
class Patches:
    """Features of a batch of pictures of one size: on one grid, or on several that follow one another."""

    features: Float[Tensor, "batch patches dim"]
    """One feature a cell, in raster order, grid after grid."""
    grids: tuple[Grid, ...]
    """Rows and columns of each grid, coarse to fine."""
    context: Float[Tensor, "batch context dim"] | None = None
    """What a layout's queries may read beside the patches, such as a caption."""

    def __post_init__(self):
        cells = sum(rows * columns for rows, columns in self.grids)
        assert self.features.shape[1] == cells, f"{self.features.shape[1]} features on {cells} cells"


@runtime_checkable
class Encoder(Protocol):
    """Maps pictures to features on grids."""

    dim: int
    """Width of the features."""
    patch_px: int
    """Pixels of a picture's side that a cell of the finest grid covers."""

    @property
    def config(self) -> "EncoderConfig":
        """What builds this encoder again, up to its weights, without any file that they were first read from."""
        ...

    def grids(self, size_px: Grid) -> tuple[Grid, ...]:
        """Returns the grids of a picture of that height and width, coarse to fine.

        Raises:
            ValueError: if the encoder reads no picture of that size.
        """
        ...

    def __call__(self, images: Float[Tensor, "batch 3 height width"]) -> Patches:
        """Returns the features of pictures with values in [0, 1]."""
        ...
