"""How a diffusion decoder sees a picture's codes: on the cells of a grid, as tokens to attend to, or as one vector.

A missing code (-1), beyond a prefix or in a branch without codes, is seen as a learned feature of its own, never as
a code; only the one vector leaves it out.

Sources: Bachmann et al., "FlexTok", https://arxiv.org/abs/2502.13967, sec. 3 (tokens before the patches, a learned
token for each missing one); Chen et al., "PixArt-alpha", https://arxiv.org/abs/2310.00426, sec. 2.3 (cross-attention);
Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents", https://arxiv.org/abs/2204.06125,
sec. 2.1 (a vector added to the time's features); GLM-Image in diffusers 0.42 (codes enlarged to the grid of the
patches and added).
Differs: the one vector is the mean of codes that an MLP has read with their places, not an embedding of CLIP.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.model.grid_places import listed, of_one_shape, resized, whole_grid
from rebus.tokenizers.tokens import CodeLayout, Grid


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of a batch of pictures of one size."""

    features: Float[Tensor, "batch positions dim"]
    held: Bool[Tensor, "batch positions"]
    """False where the code is missing."""
    grid: Grid
    """Rows and columns of the cells; a sequence is one row."""


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Patches and codes as the transformer reads them."""

    tokens: Float[Tensor, "batch tokens dim"]
    """What the blocks transform; the patches are the last of them."""
    context: Float[Tensor, "batch positions dim"] | None = None
    """What the tokens read in every block, if the blocks have such an attention."""
    vector: Float[Tensor, "batch dim"] | None = None
    """What is added to the features of the time."""


@dataclass(frozen=True, kw_only=True)
class GridConditionConfig:
    """The features of a code are added to the patches that lie where its cell lies, also if one is the finer."""

    per_patch: bool = False
    """Whether a code has features of its own for each patch in its cell, where patches are the finer, as in a decoder
    that paints larger than the tokenizer sees: else these patches all get the same, and know their place alone."""

    def build(self, layout: CodeLayout, patch_grids: tuple[Grid, ...], dim: int) -> "GridCondition":
        """Builds the condition for codes of a layout.

        Raises:
            ValueError: if the codes lie on no grid, or neither grid is a whole number of times as fine as the other.
        """
        pairs = [(grid, patches) for grid in layout.sizes for patches in patch_grids if of_one_shape(grid, patches)]
        wrong = [(grid, patches) for grid, patches in pairs if max(grid[0], patches[0]) % min(grid[0], patches[0])]
        if layout.kind == "sequence" or not pairs or wrong:
            wanted = f"a whole number of times as fine or coarse as that of the patches, {listed(patch_grids)}"
            got = listed(layout.sizes) if layout.kind == "grid" else "a sequence"
            raise ValueError(f"grid of the codes must be {wanted}, got {got}")
        folds = {grid[0] // patches[0] for grid, patches in pairs if grid[0] > patches[0]}
        return GridCondition(folds, dim, per_patch=self.per_patch)


class GridCondition(nn.Module):
    """Adds codes to patches: each to all patches in its cell, or all those in a patch, merged, to that patch."""

    has_context = False

    def __init__(self, folds: set[int], dim: int, *, per_patch: bool = False) -> None:
        super().__init__()
        self.per_patch = per_patch
        self.merge = nn.ModuleDict({str(fold): nn.Linear(fold**2 * dim, dim, bias=False) for fold in sorted(folds)})
        with torch.no_grad():  # merged codes start as their mean
            for fold, linear in self.merge.items():
                assert isinstance(linear, nn.Linear)
                linear.weight.copy_(torch.eye(dim).repeat(1, int(fold) ** 2) / int(fold) ** 2)

    def forward(self, patches: Float[Tensor, "batch patches dim"], codes: Codes, patch_grid: Grid) -> Conditioned:
        """Returns patches that know their codes."""
        rows, patch_rows = codes.grid[0], patch_grid[0]
        if rows <= patch_rows:
            fold, features = patch_rows // rows, codes.features
            if not self.per_patch:
                features = repeat(features, "b n d -> b n (p q d)", p=fold, q=fold)
            cells = rearrange(features, "b (h w) (p q d) -> b (h p w q) d", h=rows, p=fold, q=fold)
        else:
            fold = rows // patch_rows
            cells = rearrange(codes.features, "b (h p w q) d -> b (h w) (p q d)", h=patch_rows, p=fold, q=fold)
            cells = self.merge[str(fold)](cells)
        return Conditioned(patches + cells)


@dataclass(frozen=True, kw_only=True)
class SequenceConditionConfig:
    """Codes are tokens of their own, which the patches attend to: for codes without a place in the picture."""

    def build(self, layout: CodeLayout, patch_grids: tuple[Grid, ...], dim: int) -> "SequenceCondition":
        """Builds the condition for codes of a layout."""
        return SequenceCondition(layout, dim)


class SequenceCondition(nn.Module):
    """Puts codes before patches."""

    has_context = False

    def __init__(self, layout: CodeLayout, dim: int) -> None:
        super().__init__()
        self.grid = whole_grid(layout)
        self.positions = code_positions(self.grid, dim)

    def forward(self, patches: Float[Tensor, "batch patches dim"], codes: Codes, patch_grid: Grid) -> Conditioned:
        """Returns patches behind codes."""
        placed = codes.features + resized(self.positions, self.grid, codes.grid)
        return Conditioned(torch.cat([placed, patches], dim=1))


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConditionConfig:
    """Patches read codes in every block, and codes stay as they are: cheaper than a sequence if codes are many."""

    def build(self, layout: CodeLayout, patch_grids: tuple[Grid, ...], dim: int) -> "CrossAttentionCondition":
        """Builds the condition for codes of a layout."""
        return CrossAttentionCondition(layout, dim)


class CrossAttentionCondition(nn.Module):
    """Puts codes beside patches."""

    has_context = True

    def __init__(self, layout: CodeLayout, dim: int) -> None:
        super().__init__()
        self.grid = whole_grid(layout)
        self.positions = code_positions(self.grid, dim)

    def forward(self, patches: Float[Tensor, "batch patches dim"], codes: Codes, patch_grid: Grid) -> Conditioned:
        """Returns patches, and codes for them to read."""
        return Conditioned(patches, context=codes.features + resized(self.positions, self.grid, codes.grid))


@dataclass(frozen=True, kw_only=True)
class PooledConditionConfig:
    """Codes become one vector beside the features of the time: for codes that say what, and hardly where."""

    def build(self, layout: CodeLayout, patch_grids: tuple[Grid, ...], dim: int) -> "PooledCondition":
        """Builds the condition for codes of a layout."""
        return PooledCondition(layout, dim)


class PooledCondition(nn.Module):
    """Takes the mean over the codes that a picture holds, each read with its place."""

    has_context = False

    def __init__(self, layout: CodeLayout, dim: int) -> None:
        super().__init__()
        self.grid = whole_grid(layout)
        self.positions = code_positions(self.grid, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.absent = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, patches: Float[Tensor, "batch patches dim"], codes: Codes, patch_grid: Grid) -> Conditioned:
        """Returns patches as they are, and the vector; without any code that of none."""
        read = self.mlp(codes.features + resized(self.positions, self.grid, codes.grid))
        held = codes.held[..., None]
        mean = (read * held).sum(dim=1) / held.sum(dim=1).clamp_min(1)
        return Conditioned(patches, vector=torch.where(held.any(dim=1), mean, self.absent))


ConditionConfig = GridConditionConfig | SequenceConditionConfig | CrossAttentionConditionConfig | PooledConditionConfig
Condition = GridCondition | SequenceCondition | CrossAttentionCondition | PooledCondition


def patches_per_side(config: ConditionConfig, layout: CodeLayout, patch_grids: tuple[Grid, ...]) -> int:
    """Returns for how many patches along each side of its cell a code has features of its own.

    Raises:
        ValueError: if that is asked for where it differs between sizes, or codes are finer than patches.
    """
    if not isinstance(config, GridConditionConfig) or not config.per_patch:
        return 1
    folds = {patches[0] // grid[0] for grid in layout.sizes for patches in patch_grids if of_one_shape(grid, patches)}
    if len(folds) != 1 or 0 in folds:
        wanted = "false where codes are finer than patches or sizes are several"
        raise ValueError(f"condition.per_patch must be {wanted}, got patches on {listed(patch_grids)}")
    return folds.pop()


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
    def place(self, means: Float[Tensor, "codes parts values"]) -> None:
        """Starts the rows of stream 0 at what their codes look like on average, such as their mean patch of latents.

        That is then there to be read off, where it would have to be learned step by step. The features beyond those
        values stay random, and tell codes of like looks apart. Parts are the patches for which a code has features.
        """
        features = self._first(means)
        features.copy_(means[..., : features.shape[-1]])

    @torch.no_grad()
    def move(self, differences: Float[Tensor, "codes parts values"]) -> None:
        """Adds to what ``place`` would start."""
        features = self._first(differences)
        features.add_(differences[..., : features.shape[-1]])

    def _first(self, values: Float[Tensor, "codes parts values"]) -> Float[Tensor, "codes parts first"]:
        table = next(self.streams.parameters())
        return table.view(len(table), values.shape[1], -1)[: len(values), :, : values.shape[2]]


def code_positions(grid: Grid, dim: int) -> nn.Parameter:
    """Returns fresh features of the places of codes."""
    return nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], dim))
