"""What every pixel decoder takes and returns, so that one may replace another by a config."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from rebus.tokenizers.tokens import Grid

if TYPE_CHECKING:
    from rebus.tokenizers.pixel_decoders.choice import PixelDecoderConfig


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What a decoder reads and what it paints; supervision reads the same features."""

    feature_dim: int
    """Width of the features."""
    num_features: int
    """Most features that a picture has."""
    on_grid: bool
    """Whether feature i belongs to cell i of the picture's grid; if not, features have no place."""
    grids: tuple[Grid, ...]
    """Those of which each picture has one, in patches."""
    patch_px: int
    """Side of a patch."""


class PixelDecoder(Protocol):
    """Paints pictures from the features of their codes."""

    @property
    def config(self) -> "PixelDecoderConfig":
        """What builds this decoder again, up to its weights, without any file that they were first read from."""
        ...

    def __call__(
        self, features: Float[Tensor, "batch features dim"], mask: Bool[Tensor, "batch features"], grid: Grid
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures of about [0, 1], ``grid`` patches large; features where ``mask`` is False are missing."""
        ...
