"""The cosine transform of colour patches: what a fresh image tokenizer does before it has learned anything.

An auto-encoder that starts from random weights first spends tens of thousands of pictures on the mean colour of its
patches, since the other directions of pixel space vary far less. Started as a transform coder it is past that point
at step 0: its first features are low frequencies, and a code book that gathers around them rebuilds shapes at once.

Source: Ahmed, Natarajan and Rao, "Discrete Cosine Transform", IEEE Transactions on Computers C-23 (1974).
Differs: colours turn to brightness and two differences first, and coefficients are ordered by how much they are
expected to vary: brightness before colour, low before high frequencies.
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

COEFFICIENT_SCALE = 8.0
"""Coefficients of patches in [-1, 1] are divided by this, so that they are of the order of 1."""
_COLOR_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (0.5, -1.0, 0.5))
_COLOR_WEIGHTS = (1.0, 0.45, 0.35)


def cosine_basis(patch_px: int, number: int) -> Float[Tensor, "number values"]:
    """Returns the first orthonormal basis vectors of ``(channel, row, column)`` patches, the most telling ones first.

    Raises:
        ValueError: if more vectors are asked for than a patch has values.
    """
    num_values = 3 * patch_px * patch_px
    if not 1 <= number <= num_values:
        raise ValueError(f"number must be in 1..{num_values} for patches of {patch_px} px, got {number}")
    frequencies, waves = _waves(patch_px)
    colors = torch.tensor(_COLOR_AXES)
    colors = colors / colors.norm(dim=-1, keepdim=True)
    basis = einsum(colors, waves, waves, "opponent channel, u row, v column -> opponent u v channel row column")
    spread = torch.tensor(_COLOR_WEIGHTS)[:, None, None] / (1 + (frequencies[:, None] ** 2 + frequencies**2).sqrt())
    order = spread.flatten().argsort(descending=True, stable=True)[:number]
    return rearrange(basis, "opponent u v channel row column -> (opponent u v) (channel row column)")[order]


def cosine_kernels(patch_px: int, number: int) -> Float[Tensor, "number 3 patch_px patch_px"]:
    """Returns the first basis vectors as kernels of a convolution, and zeros where a patch has fewer values."""
    basis = cosine_basis(patch_px, min(number, 3 * patch_px * patch_px))
    kernels = rearrange(basis, "n (c p q) -> n c p q", c=3, p=patch_px)
    return torch.cat([kernels, kernels.new_zeros(number - len(kernels), *kernels.shape[1:])])


def plane_basis(side: int) -> Float[Tensor, "waves side side"]:
    """Returns the orthonormal basis of squares of one channel, low frequencies first."""
    frequencies, waves = _waves(side)
    order = (frequencies[:, None] ** 2 + frequencies**2).flatten().argsort(stable=True)
    planes = einsum(waves, waves, "u row, v column -> u v row column")
    return rearrange(planes, "u v row column -> (u v) row column")[order]


def _waves(side: int) -> tuple[Float[Tensor, " side"], Float[Tensor, "side side"]]:
    frequencies = torch.arange(side).float()
    waves = torch.cos(math.pi * (frequencies + 0.5) * frequencies[:, None] / side) * (2 / side) ** 0.5
    waves[0] /= 2**0.5
    return frequencies, waves
