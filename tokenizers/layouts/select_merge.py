"""A choice of the patches, into which the others are merged: plain pictures get few codes, busy ones many."""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
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
)
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream


@dataclass(frozen=True, kw_only=True)
class SelectMergeConfig:
    """Which share of the patches to keep, and how to merge the others into them."""

    target_share: float = 1 / 3
    """Share of the patches that is to be kept on the mean over pictures."""
    share_weight: float = 2.0
    """Weight of the squared distance of the share kept in a batch from that."""
    depth: int = 2
    """Blocks in which kept patches read one another and those not kept."""
    num_heads: int = 4
    """Attention heads."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "SelectMerge":
        """Builds the layout for features of a width.

        Raises:
            ValueError: if a number is out of range, or pictures have several sizes.
        """
        del code_dim
        return SelectMerge(dim, one_grid(grids), self)


class SelectMerge(Layout):
    """Keeps some patches, in raster order; each reads the kept ones before it and all that were not kept.

    A patch is kept where its score is above 0; in training the noise of the Gumbel trick is added to the score, and the
    choice passes on the gradient of its chance. One patch at least is kept.

    Source: Jin et al., "Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization" (LaVIT),
    https://arxiv.org/abs/2309.04669, sec. 3.1; Rao et al., "DynamicViT", https://arxiv.org/abs/2106.02034, sec. 3.2 and
    3.3 (the choice weighs attention).
    Differs: no noise at inference, so that a picture always has the same codes, nor in the share that is pulled to its
    target, for by noise alone an undecided choice keeps a third of the patches, and without it none; what is kept also
    says where it was, since the decoder knows no more than the codes.
    """

    def __init__(self, dim: int, grid: Grid, config: SelectMergeConfig) -> None:
        super().__init__()
        if not 0 < config.target_share < 1:
            raise ValueError(f"target_share must be above 0 and below 1, got {config.target_share}")
        if config.depth < 1:
            raise ValueError(f"depth must be at least 1, got {config.depth}")
        self.config = config
        self.num_cells = grid[0] * grid[1]
        if self.num_cells < 2:
            raise ValueError(f"grid of patches to choose from must have at least 2, got {grid}")
        self.look = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        last = nn.Linear(dim // 2, 1)
        # Wide apart from the start: scores close together would all cross 0 at once.
        nn.init.normal_(last.weight, std=2 * (dim // 2) ** -0.5)
        self.score = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.LayerNorm(dim // 2), last)
        self.input_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(_MergeBlock(dim, config.num_heads) for _ in range(config.depth))
        self.places = nn.Parameter(0.1 * torch.randn(self.num_cells, dim))

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        return CodeLayout("sequence", self.num_cells, streams, grids=any_length(self.num_cells))

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of the patches that are kept, then of the others, which count no more."""
        assert extras.lengths is None, "the picture says how many patches are kept"
        cells = rearrange(finest_cells(patches), "b d h w -> b (h w) d")
        scores = self._scores(cells)
        kept = _kept(scores)
        losses = {}
        if self.training:
            share = kept.mean()  # without noise, for so it will be when pictures are encoded
            losses["share_kept"] = self.config.share_weight * (share - self.config.target_share).square()
            if extras.noise is not None:
                # Two Gumbel variables differ by a logistic one.
                kept = _kept(scores + extras.noise.clamp(1e-6, 1 - 1e-6).logit())
        others, merged = self.input_norm(cells), cells
        for block in self.blocks:
            merged = block(merged, others, kept)
        is_kept = kept > 0.5
        raster = is_kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        features = (merged + self.places).gather(1, raster[..., None].expand_as(merged))
        return Positions(features, first_positions(is_kept.sum(dim=1), self.num_cells), losses)

    def draw_noise(self, batch: int, generator: torch.Generator) -> Float[Tensor, "batch numbers"]:
        """Returns the noise of the scores of a training step."""
        return torch.rand(batch, self.num_cells, generator=generator)

    def _scores(self, cells: Float[Tensor, "batch cells dim"]) -> Float[Tensor, "batch cells"]:
        """Returns how much each patch is worth keeping, by what it shows and what the whole picture shows."""
        own, whole = self.look(cells).chunk(2, dim=-1)
        whole = whole.mean(dim=1, keepdim=True).expand_as(own)
        return self.score(torch.cat([own, whole], dim=-1))[..., 0].float()


def _kept(scores: Float[Tensor, "batch cells"]) -> Float[Tensor, "batch cells"]:
    """Returns 1 for the patches that are kept and 0 for the others, with the gradient of the chance of it."""
    chances = scores.sigmoid()
    best = torch.zeros_like(scores).scatter(1, scores.argmax(dim=1, keepdim=True), 1.0)
    return torch.maximum((scores > 0).float(), best) + (chances - chances.detach())


class _MergeBlock(nn.Module):
    """A transformer block of kept patches: they read the kept ones before them, then those that were not kept."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.kept_norm = nn.LayerNorm(dim)
        self.among_kept = _WeighedAttention(dim, num_heads)
        self.others_norm = nn.LayerNorm(dim)
        self.to_others = _WeighedAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim)
        last = nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), last)
        for output in (self.among_kept.output, self.to_others.output, last):
            nn.init.zeros_(output.weight)  # a fresh block passes on what comes in, as those of `Transformer`
            nn.init.zeros_(output.bias)

    def forward(
        self,
        features: Float[Tensor, "batch cells dim"],
        others: Float[Tensor, "batch cells dim"],
        kept: Float[Tensor, "batch cells"],
    ) -> Float[Tensor, "batch cells dim"]:
        """Returns the features after both, and an MLP; those of patches not kept mean nothing."""
        earlier = torch.ones(kept.shape[1], kept.shape[1], device=kept.device).tril()
        normed = self.kept_norm(features)
        features = features + self.among_kept(normed, normed, kept[:, None] * earlier)
        features = features + self.to_others(self.others_norm(features), others, 1 - kept[:, None])
        return features + self.mlp(self.mlp_norm(features))


class _WeighedAttention(nn.Module):
    """Attention whose weights are multiplied by given ones, so that these learn from what they let through."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(
        self,
        features: Float[Tensor, "batch positions dim"],
        context: Float[Tensor, "batch context dim"],
        given: Float[Tensor, "#batch #positions context"],
    ) -> Float[Tensor, "batch positions dim"]:
        """Returns what each position reads; from weights that are all 0, nothing."""
        queries = rearrange(self.query(features), "b n (h d) -> b h n d", h=self.num_heads)
        keys, values = rearrange(self.key_value(context), "b m (two h d) -> two b h m d", two=2, h=self.num_heads)
        scores = einsum(queries, keys, "b h n d, b h m d -> b h n m").float() * queries.shape[-1] ** -0.5
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp() * given[:, None]
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        mixed = einsum(weights.to(values), values, "b h n m, b h m d -> b h n d")
        return self.output(rearrange(mixed, "b h n d -> b n (h d)"))
