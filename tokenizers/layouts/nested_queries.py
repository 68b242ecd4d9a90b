"""Causal 1-D queries of which any prefix decodes, coarse to fine: the common case of `queries`."""

from dataclasses import dataclass

from rebus.tokenizers.layouts.lengths import LengthsConfig
from rebus.tokenizers.layouts.queries import Queries, QueriesConfig
from rebus.tokenizers.tokens import Grid


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

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> Queries:
        """Builds the layout for features of a width.

        Raises:
            ValueError: as `QueriesConfig.build`.
        """
        general = QueriesConfig(
            num_queries=self.num_queries,
            depth=self.depth,
            num_heads=self.num_heads,
            order="causal",
            lengths=LengthsConfig(shortest_prefix=self.shortest_prefix),
        )
        return general.build(dim, code_dim, grids)
