"""Rotary positions on a grid: attention that knows how far apart two patches are, on pictures of any size.

Half of the channel pairs of a head turn with the row of a patch, half with its column, each pair at its own pace; what
two patches say to each other then depends on the way from one to the other alone.

Source: Heo et al., "Rotary Position Embedding for Vision Transformer", https://arxiv.org/abs/2403.13298, sec. 3
(axial frequencies, base 100).
"""

import torch
from jaxtyping import Float
from torch import Tensor

Rotation = Float[Tensor, "2 positions pairs"]
"""Cosines and sines of the angle by which each pair of channels turns at each position."""
_BASE = 100.0


def check_head(dim: int, num_heads: int) -> None:
    """Refuses heads whose channels are not two pairs an axis.

    Raises:
        ValueError: if the heads of that width cannot be turned.
    """
    if dim % (4 * num_heads):
        raise ValueError(f"dim must be a multiple of 4 * num_heads = {4 * num_heads} (rotary positions), got {dim}")


def grid_rotation(rows: int, columns: int, head_dim: int, device: torch.device) -> Rotation:
    """Returns the rotation of the cells of a grid in raster order."""
    frequencies = _BASE ** -(torch.arange(head_dim // 4, device=device) / (head_dim // 4))
    row_angles = torch.arange(rows, device=device)[:, None, None] * frequencies
    column_angles = torch.arange(columns, device=device)[None, :, None] * frequencies
    angles = [row_angles.expand(-1, columns, -1), column_angles.expand(rows, -1, -1)]
    return _turned(torch.cat(angles, dim=-1).flatten(0, 1))


def followed_by_placeless(rotation: Rotation, number: int) -> Float[Tensor, "2 more pairs"]:
    """Returns the rotation of the same positions and ``number`` more that do not turn."""
    still = torch.zeros(number, rotation.shape[-1], device=rotation.device)
    return torch.cat([rotation, _turned(still)], dim=1)


def rotate(
    features: Float[Tensor, "batch heads positions channels"], rotation: Rotation
) -> Float[Tensor, "batch heads positions channels"]:
    """Returns queries or keys, turned: channel i and channel i + half of a head are a pair."""
    first, second = features.float().chunk(2, dim=-1)
    cosine, sine = rotation
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(features.dtype)


def _turned(angles: Float[Tensor, "positions pairs"]) -> Rotation:
    return torch.stack([angles.cos(), angles.sin()])
