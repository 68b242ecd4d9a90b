"""1-D queries in levels, each twice as fine as those before it and starting from what they have left."""

from dataclasses import dataclass

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
)
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class ResidualLevelsConfig:
    """Queries in levels of 1, 1, 2, 4, 8 ... that read patches which are merged more and more."""

    num_queries: int = 64
    """Codes of a whole picture, a power of two."""
    shortest_prefix: int = 4
    """Fewest positions that training keeps, a power of two; these are drawn one by one, later levels at once."""
    drop_rate: float = 0.2
    """Share of training pictures that keep only the first levels, each more often than the one before it."""
    depth: int = 4
    """Transformer blocks in which queries and patches read one another."""
    num_stages: int = 4
    """Sizes of the patches: that of the encoder, then, evenly between the blocks, ever half as many."""
    num_heads: int = 4
    """Attention heads."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "ResidualLevels":
        """Builds the layout for features of a width.

        Raises:
            ValueError: if a number is out of range, or pictures have several sizes.
        """
        del code_dim
        one_grid(grids)
        return ResidualLevels(dim, self)


class ResidualLevels(Layout):
    """Queries of a level start from the pooled rest that the levels before them leave of the patches.

    Patches and queries form one row of levels, coarse to fine, in which a level sees itself and those before it. Merged
    patches join the row in front; those that they were merged from keep the rest.

    Source: Zhang et al., "ResTok: Learning Hierarchical Residuals in 1D Visual Tokenizers for Autoregressive Image
    Generation", https://arxiv.org/abs/2601.03955, sec. 3.
    Differs: patches are merged between blocks, not inside of one; all levels share the projection to codes.
    """

    reads_context = True

    def __init__(self, dim: int, config: ResidualLevelsConfig) -> None:
        super().__init__()
        if config.num_queries < 1 or config.num_queries & (config.num_queries - 1):
            raise ValueError(f"num_queries must be a power of two, got {config.num_queries}")
        shortest = config.shortest_prefix
        if not 1 <= shortest <= config.num_queries or shortest & (shortest - 1):
            raise ValueError(f"shortest_prefix must be a power of two in 1..{config.num_queries}, got {shortest}")
        if not 0 <= config.drop_rate <= 1:
            raise ValueError(f"drop_rate must be in [0, 1], got {config.drop_rate}")
        if not 1 <= config.num_stages <= config.depth:
            raise ValueError(f"num_stages must be in 1..{config.depth} (depth), got {config.num_stages}")
        self.num_queries, self.drop_rate = config.num_queries, config.drop_rate
        self.sizes = (1, *(2**power for power in range(config.num_queries.bit_length() - 1)))
        self.cuts = tuple(2**power for power in range(config.num_queries.bit_length()) if 2**power >= shortest)
        self.merges_before = {stage * config.depth // config.num_stages for stage in range(1, config.num_stages)}
        self.query_levels = nn.Parameter(0.02 * torch.randn(len(self.sizes), dim))
        self.patch_levels = nn.Parameter(0.02 * torch.randn(config.num_stages, dim))
        self.transformer = Transformer(dim, config.depth, config.num_heads, has_norm=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        levels = (1,) * self.cuts[0] + self.cuts[:-1]
        return CodeLayout("sequence", self.num_queries, streams, prefix_decodable=True, levels=levels)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of each query."""
        cells = finest_cells(patches)
        maps, queries = [cells + _per_channel(self.patch_levels[0])], self._starts(cells)
        context = cells.new_zeros(len(cells), 0, cells.shape[1]) if patches.context is None else patches.context
        for number, block in enumerate(self.transformer.blocks):
            if number in self.merges_before:
                maps = self._merged(maps)
            row = torch.cat([context, *(rearrange(part, "b d h w -> b (h w) d") for part in maps), queries], dim=1)
            sizes = [context.shape[1], *(part[0, 0].numel() for part in maps)]
            context, *rows, queries = block(row, self._mask(sizes, row.device)).split([*sizes, self.num_queries], dim=1)
            maps = [
                rearrange(part, "b (h w) d -> b d h w", h=old.shape[2]) for part, old in zip(rows, maps, strict=True)
            ]
        if extras.lengths is None:
            return Positions(queries, all_positions(queries))
        return Positions(queries, first_positions(extras.lengths, self.num_queries))

    def draw_lengths(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Returns how many positions a training step keeps of each picture."""
        lengths = torch.tensor(self.cuts)
        weights = lengths / lengths[:-1].sum() * self.drop_rate
        weights[-1] = 1 - self.drop_rate if len(self.cuts) > 1 else 1
        return lengths[torch.multinomial(weights, batch, replacement=True, generator=generator)]

    def _starts(self, cells: Float[Tensor, "batch dim rows columns"]) -> Float[Tensor, "batch queries dim"]:
        """Returns means of ever smaller parts of a map, each of what the means before leave, and their level."""
        starts, rest = [], cells
        for size, level in zip(self.sizes, self.query_levels, strict=True):
            power = size.bit_length() - 1
            pooled = F.adaptive_avg_pool2d(rest, (2 ** (power // 2), 2 ** (power - power // 2)))
            rest = rest - F.interpolate(pooled, size=rest.shape[2:], mode="nearest")
            starts.append(rearrange(pooled, "b d h w -> b (h w) d") + level)
        return torch.cat(starts, dim=1)

    def _merged(self, maps: list[Tensor]) -> list[Tensor]:
        """Returns the maps with the coarsest one halved in front of them; columns and rows take turns."""
        coarsest, *others = maps
        rows, columns = coarsest.shape[2:]
        halved = (rows, -(-columns // 2)) if len(maps) % 2 else (-(-rows // 2), columns)
        merged = F.adaptive_avg_pool2d(coarsest, halved)
        rest = coarsest - F.interpolate(merged, size=(rows, columns), mode="nearest")
        return [merged + _per_channel(self.patch_levels[len(maps)]), rest, *others]

    def _mask(self, sizes: list[int], device: torch.device) -> Bool[Tensor, "1 positions positions"]:
        """Returns where a position may look: to its own level and those before it."""
        numbers = [number for number, size in enumerate((*sizes, *self.sizes)) for _ in range(size)]
        levels = torch.tensor(numbers, device=device)
        return (levels[:, None] >= levels)[None]


def _per_channel(values: Float[Tensor, " dim"]) -> Float[Tensor, "dim 1 1"]:
    return rearrange(values, "d -> d 1 1")
