"""Two grids of one picture in a row, coarse then fine, which a decoder reads as one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import NO_EXTRAS, Extras, Layout, Positions, all_positions, one_grid
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream


@dataclass(frozen=True, kw_only=True)
class TwoGridsConfig:
    """One code for each cell of an encoder's two grids, such as a semantic and a finer one of pixels."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "TwoGrids":
        """Builds the layout for what an encoder returns.

        Raises:
            ValueError: if that is not two grids, or pictures have several sizes.
        """
        del dim, code_dim  # it has no parameters
        one_grid(grids)
        if len(grids[0]) != 2:
            raise ValueError(f"grids of the encoder must be two, coarse and fine, got {grids[0]}")
        return TwoGrids(*grids[0])


class TwoGrids(Layout):
    """Passes on the cells of both grids; behind the codes the coarse grid grows and joins the channels of the fine one.

    Source: Huang et al., "ILLUME+: Illuminating Unified MLLM with Dual Visual Tokenization and Diffusion Refinement",
    https://arxiv.org/abs/2504.01934, sec. 3.1.
    Differs: pictures have one size.
    """

    on_grid = True

    def __init__(self, coarse: Grid, fine: Grid) -> None:
        super().__init__()
        self.coarse, self.fine = coarse, fine
        self.levels = (coarse[0] * coarse[1], fine[0] * fine[1])

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        return CodeLayout("sequence", sum(self.levels), streams, levels=self.levels)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of the coarse cells, then of the fine ones."""
        assert extras.lengths is None, "two grids have no shorter form"
        return Positions(patches.features, all_positions(patches.features))

    def arrange(
        self, codes: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"]
    ) -> tuple[Float[Tensor, "batch places arranged_dim"], Bool[Tensor, "batch places"]]:
        """Returns for each fine cell what the coarse codes say there, and beside it its own code."""
        coarse, fine = codes.split(self.levels, dim=1)
        cells = rearrange(coarse.float(), "b (h w) d -> b d h w", h=self.coarse[0])
        grown = rearrange(F.interpolate(cells, size=self.fine, mode="bicubic"), "b d h w -> b (h w) d")
        return torch.cat([grown.to(fine), fine], dim=-1), mask[:, self.levels[0] :]

    def arranged_dim(self, code_dim: int) -> int:
        """Returns the width of both codes of a cell together."""
        return 2 * code_dim
