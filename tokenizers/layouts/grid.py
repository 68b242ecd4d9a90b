"""One code for each patch, in raster order."""

from dataclasses import dataclass

from einops import rearrange

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import NO_EXTRAS, Extras, Layout, Positions, all_positions, finest_cells
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """One code for each patch, in raster order; the pictures may have several sizes."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "GridLayout":
        """Builds the layout for what an encoder returns for pictures of each size."""
        del dim, code_dim  # it has no parameters
        return GridLayout(tuple(finest for *_, finest in grids))


class GridLayout(Layout):
    """Passes patch features on: position i is patch i of the finest grid."""

    on_grid = True

    def __init__(self, grids: tuple[Grid, ...]) -> None:
        super().__init__()
        self.grids = tuple(sorted(set(grids)))

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        num_positions = max(rows * columns for rows, columns in self.grids)
        if len(self.grids) == 1:
            return CodeLayout("grid", num_positions, streams, grid=self.grids[0])
        return CodeLayout("grid", num_positions, streams, grids=self.grids)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of each position."""
        assert extras.lengths is None, "a grid has no shorter form"
        features = rearrange(finest_cells(patches), "b d h w -> b (h w) d")
        return Positions(features, all_positions(features))
