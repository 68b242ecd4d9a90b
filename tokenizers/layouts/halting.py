"""Queries that are told how well the picture is to be rebuilt, and say themselves how many of them that takes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import (
    NO_EXTRAS,
    Extras,
    Layout,
    Positions,
    any_length,
    finest_cells,
    first_positions,
    one_grid,
    with_context,
)
from rebus.tokenizers.layouts.lengths import LengthsConfig
from rebus.tokenizers.layouts.queries import pooled_coarse_to_fine
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream
from rebus.tokenizers.transformer import Transformer

ERRORS = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1),
    *(0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38),
)
"""Mean absolute errors of pixels in [0, 1] that can be wanted; others count as the next larger one."""


@dataclass(frozen=True, kw_only=True)
class HaltingQueriesConfig:
    """Queries for a wanted error, of which those that it does not take are left out."""

    num_queries: int = 64
    """Most codes of a picture."""
    depth: int = 2
    """Transformer blocks in which queries, patches and the wanted error all see one another."""
    num_heads: int = 4
    """Attention heads."""
    wanted_error: float = 0.05
    """Mean absolute error of pixels in [0, 1] that pictures are encoded for, once trained."""
    threshold: float = 0.55
    """Chance of being superfluous above which a query is left out."""
    halting_weight: float = 1.0
    """Weight of learning which queries are superfluous."""
    lengths: LengthsConfig = LengthsConfig(draw="uniform")
    """How many queries training gives a picture to see what error that leaves."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "HaltingQueries":
        """Builds the layout for features of a width.

        Raises:
            ValueError: if a number is out of range, or pictures have several sizes.
        """
        del code_dim
        one_grid(grids)
        return HaltingQueries(dim, self)


class HaltingQueries(Layout):
    """Free queries with a head that tells which of them are superfluous for a wanted error.

    Training shows a batch twice. First each picture gets a drawn number of queries, is to be rebuilt without error, and
    leaves some error. Then it gets all queries, that error is wanted, and those beyond the drawn number are to halt.
    Encoding is a single pass: as many queries are kept as do not halt.

    Source: Duggal et al., "Single-pass Adaptive Image Tokenization for Minimum Program Search" (KARL),
    https://arxiv.org/abs/2507.07995, sec. 3.
    Differs: queries start from pooled patches; as many are kept as do not halt, but always the first ones, and training
    keeps the drawn number of them in both passes; the first pass always wants the least error.
    """

    reads_context = True
    learns_from_errors = True
    errors: Float[Tensor, " bins"]
    """``ERRORS``."""

    def __init__(self, dim: int, config: HaltingQueriesConfig) -> None:
        super().__init__()
        if config.num_queries < 2:
            raise ValueError(f"num_queries must be at least 2, got {config.num_queries}")
        if not 0 < config.wanted_error <= ERRORS[-1]:
            raise ValueError(f"wanted_error must be above 0 and at most {ERRORS[-1]}, got {config.wanted_error}")
        if not 0 < config.threshold < 1:
            raise ValueError(f"threshold must be above 0 and below 1, got {config.threshold}")
        self.config = config
        self.num_queries = config.num_queries
        self.lengths = config.lengths.build(config.num_queries)
        self.register_buffer("errors", torch.tensor(ERRORS), persistent=False)
        self.wanted = nn.Embedding(len(ERRORS), dim)
        self.queries = nn.Parameter(0.02 * torch.randn(config.num_queries, dim))
        self.transformer = Transformer(dim, config.depth, config.num_heads, has_norm=False)
        self.halt = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1))

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        return CodeLayout("sequence", self.num_queries, streams, grids=any_length(self.num_queries))

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of each query; how many count is given in training, and told by the queries later."""
        cells = with_context(patches)
        known = torch.cat([cells, self._wanted(extras, len(cells))[:, None]], dim=1)
        queries = self.queries + pooled_coarse_to_fine(finest_cells(patches), self.num_queries)
        given = None if extras.lengths is None else first_positions(extras.lengths, self.num_queries)
        mask = None
        if given is not None and extras.errors is None:  # the first pass: there are no other queries yet
            mask = F.pad(given, (known.shape[1], 0), value=True)[:, None]
        read = self.transformer(torch.cat([known, queries], dim=1), mask)[:, known.shape[1] :]
        scores = self.halt(read)[..., 0].float()
        if given is None:
            lengths = (scores.sigmoid() <= self.config.threshold).sum(dim=1).clamp_min(1)
            return Positions(read, first_positions(lengths, self.num_queries))
        return Positions(read, given, {"halting": self._loss(scores, given, has_all=extras.errors is not None)})

    def draw_lengths(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Returns how many queries a training step gives each picture."""
        return self.lengths.draw(batch, generator)

    def _wanted(self, extras: Extras, batch: int) -> Float[Tensor, "batch dim"]:
        """Returns what tells the queries which error is wanted."""
        errors = torch.full((batch,), self.config.wanted_error, device=self.errors.device)
        if extras.errors is not None:
            errors = extras.errors
        elif extras.lengths is not None:
            errors = torch.zeros_like(errors)
        return self.wanted(torch.searchsorted(self.errors, errors).clamp_max(len(ERRORS) - 1))

    def _loss(
        self, scores: Float[Tensor, "batch queries"], given: Bool[Tensor, "batch queries"], *, has_all: bool
    ) -> Tensor:
        """Returns how badly the queries tell which are superfluous: means over given and others weigh the same."""
        needed = (F.softplus(scores) * given).sum() / given.sum()
        if not has_all:
            return self.config.halting_weight * needed
        return self.config.halting_weight * (
            needed + (F.softplus(-scores) * ~given).sum() / (~given).sum().clamp_min(1)
        )
