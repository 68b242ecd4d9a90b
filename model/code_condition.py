"""How a diffusion decoder sees a picture's codes: on the cells of a grid, or as tokens beside its own."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.tokenizers.tokens import CodeLayout


@dataclass(frozen=True, kw_only=True)
class GridConditionConfig:
    """The features of a code are added to the patch that lies where its cell lies; one code to a patch."""

    def build(self, layout: CodeLayout, patch_grid: tuple[int, int], dim: int) -> "GridCondition":
        """Builds the condition for codes of a layout.

        Raises:
            ValueError: if the codes lie on no grid, or on another than the patches.
        """
        if layout.grid != patch_grid:
            raise ValueError(f"grid of the codes must be that of the patches, {patch_grid}, got {layout.grid}")
        return GridCondition()


class GridCondition(nn.Module):
    """Adds codes to patches, cell by cell."""

    def forward(
        self, patches: Float[Tensor, "batch patches dim"], codes: Float[Tensor, "batch positions dim"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Returns the tokens of the transformer; the patches are the last of them."""
        return patches + codes


@dataclass(frozen=True, kw_only=True)
class SequenceConditionConfig:
    """Codes are tokens of their own, which the patches attend to: for codes without a place in the picture."""

    def build(self, layout: CodeLayout, patch_grid: tuple[int, int], dim: int) -> "SequenceCondition":
        """Builds the condition for codes of a layout."""
        return SequenceCondition(layout.num_positions, dim)


class SequenceCondition(nn.Module):
    """Puts codes before patches."""

    def __init__(self, num_positions: int, dim: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(num_positions, dim))

    def forward(
        self, patches: Float[Tensor, "batch patches dim"], codes: Float[Tensor, "batch positions dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Returns the tokens of the transformer; the patches are the last of them."""
        return torch.cat([codes + self.positions, patches], dim=1)


class CodeEmbedding(nn.Module):
    """Features of codes, summed over the streams, with a row of its own for a missing code."""

    def __init__(self, layout: CodeLayout, dim: int) -> None:
        super().__init__()
        self.sizes = [stream.size for stream in layout.streams]
        # Half of unit spread is as large as embedded latents are: a rare code has few steps to grow in.
        self.streams = nn.ModuleList(
            nn.Embedding(size + 1, dim, _weight=0.5 * torch.randn(size + 1, dim)) for size in self.sizes
        )

    def forward(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features of codes; -1 is a missing one."""
        features = [
            embedding(torch.where(column < 0, size, column))
            for embedding, size, column in zip(self.streams, self.sizes, ids.unbind(dim=-1), strict=True)
        ]
        return torch.stack(features).sum(dim=0)

    @torch.no_grad()
    def place(self, means: Float[Tensor, "codes values"]) -> None:
        """Starts the rows of stream 0 at what their codes look like on average, such as their mean patch of latents.

        That is then there to be read off, where it would have to be learned step by step. The features beyond those
        values stay random, and tell codes of like looks apart.
        """
        table = next(self.streams.parameters())
        width = min(means.shape[1], table.shape[1])
        table[: len(means), :width] = means[:, :width]
