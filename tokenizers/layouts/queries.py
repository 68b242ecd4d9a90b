"""1-D queries that read the patches: free, causal, or nested so that any prefix decodes."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import (
    NO_EXTRAS,
    Extras,
    Layout,
    Positions,
    all_positions,
    finest_cells,
    first_positions,
    one_grid,
    with_context,
)
from rebus.tokenizers.layouts.lengths import LengthsConfig
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class QueriesConfig:
    """1-D queries that read the patches in one transformer with them."""

    num_queries: int = 64
    """Codes of a whole picture."""
    depth: int = 2
    """Transformer blocks in which the queries read the patches."""
    num_heads: int = 4
    """Attention heads."""
    order: Literal["free", "causal"] = "free"
    """``"free"``: patches and queries all see one another. ``"causal"``: a query sees itself, earlier ones, patches."""
    start: Literal["learned", "pooled"] = "pooled"
    """Whether a query starts from what it has learned alone, or with pooled features of the patches added."""
    lengths: LengthsConfig | None = None
    """Which prefixes training keeps; by default none, and then no prefix decodes."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "Queries":
        """Builds the layout for features of a width.

        Raises:
            ValueError: if there is no query, a length is out of range, or pictures have several sizes.
        """
        del code_dim
        one_grid(grids)
        return Queries(dim, self)


class Queries(Layout):
    """Learned queries that read the patches, and a context if there is one.

    With pooled features a query starts from cells coarse to fine (1x1, 2x2, 4x4 ... cells), since learned queries alone
    were seen not to start at all at this scale: they stayed at the background colour for 24,000 pictures.

    Source: Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation" (TiTok),
    https://arxiv.org/abs/2406.07550, sec. 3.2 (free); Ge et al., "Planting a SEED of Vision in Large Language Model",
    https://arxiv.org/abs/2307.08041, sec. 2.2 (causal); Bachmann et al., "FlexTok", https://arxiv.org/abs/2502.13967,
    sec. 3.1 (causal registers with nested dropout).
    Differs: the start from pooled features; causal queries share the blocks of the patches instead of reading them by
    cross attention.
    """

    reads_context = True

    def __init__(self, dim: int, config: QueriesConfig) -> None:
        super().__init__()
        if config.num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {config.num_queries}")
        self.num_queries = config.num_queries
        self.is_causal = config.order == "causal"
        self.is_pooled = config.start == "pooled"
        self.lengths = None if config.lengths is None else config.lengths.build(config.num_queries)
        self.queries = nn.Parameter(0.02 * torch.randn(config.num_queries, dim))
        self.transformer = Transformer(dim, config.depth, config.num_heads, has_norm=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet; a level ends where training cuts."""
        if self.lengths is None:
            return CodeLayout("sequence", self.num_queries, streams)
        return CodeLayout("sequence", self.num_queries, streams, prefix_decodable=True, levels=self.lengths.levels)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of each query."""
        cells = with_context(patches)
        queries = self.queries.expand(len(cells), -1, -1)
        if self.is_pooled:
            queries = queries + pooled_coarse_to_fine(finest_cells(patches), self.num_queries)
        mask = self._causal(cells.shape[1], cells.device) if self.is_causal else None
        read = self.transformer(torch.cat([cells, queries], dim=1), mask)[:, cells.shape[1] :]
        if extras.lengths is None:
            return Positions(read, all_positions(read))
        return Positions(read, first_positions(extras.lengths, self.num_queries))

    def draw_lengths(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"] | None:
        """Returns how many positions a training step keeps of each picture, if it drops any."""
        return None if self.lengths is None else self.lengths.draw(batch, generator)

    def _causal(self, num_cells: int, device: torch.device) -> Bool[Tensor, "1 positions positions"]:
        total = num_cells + self.num_queries
        mask = torch.ones(total, total, dtype=torch.bool, device=device).tril()
        mask[:, :num_cells] = True
        return mask[None]


def pooled_coarse_to_fine(
    cells: Float[Tensor, "batch dim rows columns"], number: int
) -> Float[Tensor, "batch number dim"]:
    """Returns the first means of ever smaller parts of a map: of all of it, of its quarters and so on."""
    pooled, side = [], 1
    while sum(level.shape[1] for level in pooled) < number:
        level = F.adaptive_avg_pool2d(cells, min(side, *cells.shape[2:]))
        pooled.append(rearrange(level, "b d h w -> b (h w) d"))
        side *= 2
    return torch.cat(pooled, dim=1)[:, :number]
