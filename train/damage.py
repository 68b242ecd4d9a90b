"""Damages clean pictures the way an imperfect painter would: moved, soft, off in colour, patched and noisy."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Pictures and where their objects are."""

    images: Float[Tensor, "batch 3 height width"]
    """In [0, 1]."""
    objects: Int[Tensor, "objects 5"]
    """Picture, concept, centre x, centre y, size; pixels."""


@dataclass(frozen=True, kw_only=True)
class DamageConfig:
    """How far a picture may be from a clean one; each picture draws its own damage up to these."""

    shift_px: float = 5.0
    """Largest shift in each direction, in pixels."""
    zoom: float = 0.06
    """Largest relative change of scale."""
    color: float = 0.08
    """Largest change of a channel's brightness, and of its contrast, as a share of full scale."""
    noise: float = 0.06
    """Largest standard deviation of the pixel noise."""
    num_wrong_patches: int = 4
    """Most 16 px patches that show a piece of another picture, as wrong codes do."""


def damaged(batch: LabelledPictures, damage: DamageConfig, generator: torch.Generator) -> LabelledPictures:
    """Returns the pictures moved, blurred, recoloured, patched and noisy, and the objects moved along."""
    images, num, side = batch.images, len(batch.images), batch.images.shape[-1]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    images = _with_wrong_patches(images, damage.num_wrong_patches, generator)
    shift, zoom = uniform(num, 2) * damage.shift_px, 1 + uniform(num) * damage.zoom
    # A pixel p of the result shows the place (p - centre - shift) / zoom + centre of the clean picture.
    affine = torch.zeros(num, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 1 / zoom
    affine[:, :, 2] = -shift * 2 / side / zoom[:, None]
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = _blurred(images, generator)
    contrast, brightness = 1 + uniform(num, 3, 1, 1) * damage.color, uniform(num, 3, 1, 1) * damage.color
    noise = torch.randn(images.shape, generator=generator) * (uniform(num, 1, 1, 1).abs() * damage.noise)
    images = ((images - 0.5) * contrast + 0.5 + brightness + noise).clamp(0, 1)

    objects = batch.objects.float()
    picture = batch.objects[:, 0]
    centre = (objects[:, 2:4] - side / 2) * zoom[picture, None] + shift[picture] + side / 2
    moved = torch.cat([objects[:, :2], centre, objects[:, 4:] * zoom[picture, None]], dim=1)
    return LabelledPictures(images, moved.round().long())


def _with_wrong_patches(
    images: Float[Tensor, "batch 3 height width"], most: int, generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Replaces up to ``most`` of the 16 px patches of half of the pictures by those of the next picture."""
    num, rows, columns = len(images), images.shape[2] // 16, images.shape[3] // 16
    share = torch.rand(num, 1, generator=generator) * 2 - 1
    wrong = torch.rand(num, rows * columns, generator=generator) < share * most / (rows * columns)
    mask = rearrange(wrong, "batch (rows columns) -> batch 1 rows columns", rows=rows).float()
    mask = F.interpolate(mask, scale_factor=16.0, mode="nearest").bool()
    return torch.where(mask, images.roll(1, dims=0), images)


def _blurred(
    images: Float[Tensor, "batch 3 height width"], generator: torch.Generator
) -> Float[Tensor, "batch 3 height width"]:
    """Leaves a third as it is, softens a third, and takes a third down to half size and up again."""
    order = torch.randperm(len(images), generator=generator)
    sharp, soft, small = images[order].tensor_split(3)
    kernel = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])).div(16).expand(3, 1, 3, 3)
    for _ in range(2):
        soft = F.conv2d(F.pad(soft, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    if len(small):
        small = F.interpolate(F.avg_pool2d(small, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    return torch.cat([sharp, soft, small])[order.argsort()]
