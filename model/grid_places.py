"""Grids of codes and of patches: which lie over each other, and where their cells are on pictures of any size.

Source: Chen et al., "PixArt-Sigma", https://arxiv.org/abs/2403.04692, sec. 3.3 (positions of another size are
interpolated from the learned ones).
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rebus.tokenizers.tokens import CodeLayout, Grid


def of_one_shape(grid: Grid, other: Grid) -> bool:
    """Whether both can lie over the same picture with square cells."""
    return grid[0] * other[1] == grid[1] * other[0]


def check_shapes(grids: tuple[Grid, ...], sizes: tuple[Grid, ...]) -> None:
    """Refuses a grid of codes that fits no size of latents, or the reverse.

    Raises:
        ValueError: if there is one.
    """
    alone = [grid for grid in grids if not any(of_one_shape(grid, size) for size in sizes)]
    alone += [size for size in sizes if not any(of_one_shape(grid, size) for grid in grids)]
    if alone:
        wanted = f"latent sizes and grids of codes must have the same shapes, got sizes {listed(sizes)}"
        raise ValueError(f"{wanted} and grids {listed(grids)}")


def listed(grids: tuple[Grid, ...]) -> str:
    """Returns the grids for people to read."""
    return ", ".join(f"{rows} x {columns}" for rows, columns in grids)


def whole_grid(layout: CodeLayout) -> Grid:
    """Returns the least grid that holds all grids of a layout; a sequence is one row."""
    if layout.kind == "sequence":
        return 1, layout.num_positions
    return bounding_grid(layout.sizes)


def bounding_grid(grids: tuple[Grid, ...]) -> Grid:
    """Returns the least grid that holds all of these."""
    return max(rows for rows, _ in grids), max(columns for _, columns in grids)


def grid_of(layout: CodeLayout, num_positions: int, patch_grid: Grid) -> Grid:
    """Returns the grid of pictures with so many positions: no two grids agree in that and in shape."""
    if layout.kind == "sequence":
        assert num_positions == layout.num_positions
        return 1, num_positions
    fitting = [grid for grid in layout.sizes if of_one_shape(grid, patch_grid) and grid[0] * grid[1] == num_positions]
    assert len(fitting) == 1, f"{num_positions} positions on {patch_grid} patches"
    return fitting[0]


def resized(table: Float[Tensor, "cells dim"], whole: Grid, grid: Grid) -> Float[Tensor, "resized dim"]:
    """Returns the features of the cells of a grid, given those of a larger one that spans the same picture."""
    if grid == whole:
        return table
    image = rearrange(table, "(h w) d -> 1 d h w", h=whole[0])
    return rearrange(F.interpolate(image, size=grid, mode="bilinear"), "1 d h w -> (h w) d")
