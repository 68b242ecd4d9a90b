"""Layouts: which positions a picture's codes take, and how features reach them."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """One code for each patch, in raster order."""

    def build(self, dim: int, grid: tuple[int, int]) -> "Grid":
        """Builds the layout for features of a width on a grid."""
        del dim  # a grid has no parameters
        return Grid(grid)


@dataclass(frozen=True, kw_only=True)
class NestedQueriesConfig:
    """Causal 1-D queries of which any prefix decodes, coarse to fine."""

    num_queries: int = 64
    """Codes of a whole picture."""
    depth: int = 2
    """Transformer blocks in which the queries read the patches."""
    num_heads: int = 4
    """Attention heads."""
    shortest_prefix: int = 1
    """Fewest positions that training keeps."""

    def build(self, dim: int, grid: tuple[int, int]) -> "NestedQueries":
        """Builds the layout for features of a width on a grid."""
        return NestedQueries(self.num_queries, dim, grid, self.depth, self.num_heads, self.shortest_prefix)


LayoutConfig = GridConfig | NestedQueriesConfig


class Grid(nn.Module):
    """Passes patch features on: position i is patch i."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        rows, columns = self.grid
        return CodeLayout(kind="grid", num_positions=rows * columns, streams=streams, grid=self.grid)

    def forward(self, features: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features of each position."""
        return features

    def draw_lengths(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Returns how many positions a training step keeps of each picture: all of them."""
        del generator
        return torch.full((batch,), self.grid[0] * self.grid[1])


class NestedQueries(nn.Module):
    """Learned queries that read the patches; each sees itself and earlier ones only.

    A query starts from patch features pooled coarse to fine (1x1, 2x2, 4x4 ... cells), since free queries were seen
    not to start at all at this scale: they stayed at the background colour for 24,000 pictures.

    Source: Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
    https://arxiv.org/abs/2502.13967, sec. 3.1 (causal registers, nested dropout by powers of two).
    Differs: the start from pooled features.
    """

    def __init__(
        self, num_queries: int, dim: int, grid: tuple[int, int], depth: int, num_heads: int, shortest_prefix: int
    ) -> None:
        super().__init__()
        if not 1 <= shortest_prefix <= num_queries:
            raise ValueError(f"shortest_prefix must be in 1..{num_queries}, got {shortest_prefix}")
        self.num_queries = num_queries
        self.grid = grid
        self.shortest_prefix = shortest_prefix
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.transformer = Transformer(dim, depth, num_heads, has_norm=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet; a level ends where training cuts."""
        levels = tuple(stop - start for start, stop in pairwise((0, *self._prefixes())))
        return CodeLayout("sequence", self.num_queries, streams, prefix_decodable=True, levels=levels)

    def forward(self, features: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the features of each query."""
        queries = self.queries + self._pool(features)
        mask = self._mask(features.shape[1]).to(features.device)
        return self.transformer(torch.cat([features, queries], dim=1), mask)[:, features.shape[1] :]

    def draw_lengths(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Returns how many positions a training step keeps of each picture: a power of two, or all, at even odds."""
        choices = torch.tensor(self._prefixes())
        return choices[torch.randint(len(choices), (batch,), generator=generator)]

    def _prefixes(self) -> list[int]:
        """Returns the numbers of positions that training may keep."""
        powers = [2**power for power in range(self.num_queries.bit_length()) if 2**power >= self.shortest_prefix]
        return [*(power for power in powers if power < self.num_queries), self.num_queries]

    def _pool(self, features: Tensor) -> Tensor:
        cells = rearrange(features, "b (h w) d -> b d h w", h=self.grid[0])
        pooled, side = [], 1
        while sum(level.shape[1] for level in pooled) < self.num_queries:
            level = F.adaptive_avg_pool2d(cells, min(side, *self.grid))
            pooled.append(rearrange(level, "b d h w -> b (h w) d"))
            side *= 2
        return torch.cat(pooled, dim=1)[:, : self.num_queries]

    def _mask(self, num_patches: int) -> Bool[Tensor, "1 positions positions"]:
        total = num_patches + self.num_queries
        mask = torch.ones(total, total, dtype=torch.bool).tril()
        mask[:, :num_patches] = True
        return mask[None]


Layout = Grid | NestedQueries
