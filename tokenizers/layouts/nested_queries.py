"""Causal 1-D queries of which any prefix decodes, coarse to fine."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import Layout, Positions, first_positions
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream
from rebus.tokenizers.transformer import Transformer


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

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "NestedQueries":
        """Builds the layout for features of a width."""
        del code_dim, grids
        return NestedQueries(dim, self)


class NestedQueries(Layout):
    """Learned queries that read the patches; each sees itself and earlier ones only.

    A query starts from patch features pooled coarse to fine (1x1, 2x2, 4x4 ... cells), since free queries were seen
    not to start at all at this scale: they stayed at the background colour for 24,000 pictures.

    Source: Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
    https://arxiv.org/abs/2502.13967, sec. 3.1 (causal registers, nested dropout by powers of two).
    Differs: the start from pooled features.
    """

    def __init__(self, dim: int, config: NestedQueriesConfig) -> None:
        super().__init__()
        if not 1 <= config.shortest_prefix <= config.num_queries:
            raise ValueError(f"shortest_prefix must be in 1..{config.num_queries}, got {config.shortest_prefix}")
        self.num_queries = config.num_queries
        self.shortest_prefix = config.shortest_prefix
        self.queries = nn.Parameter(0.02 * torch.randn(config.num_queries, dim))
        self.transformer = Transformer(dim, config.depth, config.num_heads, has_norm=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet; a level ends where training cuts."""
        levels = tuple(stop - start for start, stop in pairwise((0, *self._prefixes())))
        return CodeLayout("sequence", self.num_queries, streams, prefix_decodable=True, levels=levels)

    def forward(self, patches: Patches, lengths: Int[Tensor, " batch"] | None = None) -> Positions:
        """Returns the features of each query."""
        features = patches.features
        queries = self.queries + self._pool(features, patches.grids[-1])
        mask = self._mask(features.shape[1]).to(features.device)
        read = self.transformer(torch.cat([features, queries], dim=1), mask)[:, features.shape[1] :]
        if lengths is None:
            lengths = torch.full((len(read),), self.num_queries, device=read.device)
        return Positions(read, first_positions(lengths, self.num_queries))

    def draw_lengths(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Returns how many positions a training step keeps of each picture: a power of two, or all, at even odds."""
        choices = torch.tensor(self._prefixes())
        return choices[torch.randint(len(choices), (batch,), generator=generator)]

    def _prefixes(self) -> list[int]:
        """Returns the numbers of positions that training may keep."""
        powers = [2**power for power in range(self.num_queries.bit_length()) if 2**power >= self.shortest_prefix]
        return [*(power for power in powers if power < self.num_queries), self.num_queries]

    def _pool(self, features: Tensor, grid: Grid) -> Tensor:
        cells = rearrange(features, "b (h w) d -> b d h w", h=grid[0])
        pooled, side = [], 1
        while sum(level.shape[1] for level in pooled) < self.num_queries:
            level = F.adaptive_avg_pool2d(cells, min(side, *grid))
            pooled.append(rearrange(level, "b d h w -> b (h w) d"))
            side *= 2
        return torch.cat(pooled, dim=1)[:, : self.num_queries]

    def _mask(self, num_patches: int) -> Bool[Tensor, "1 positions positions"]:
        total = num_patches + self.num_queries
        mask = torch.ones(total, total, dtype=torch.bool).tril()
        mask[:, :num_patches] = True
        return mask[None]
