"""A second judge of scenes, which learned nothing: it lays the emoji, as scenes draw them, on every place of a picture.

It and the detector that judges are made so differently that where both rank models alike, neither's mistakes did it.
No reward may use it: what is trained against a judge learns the judge's mistakes. A test holds ``train`` to that.

Source: matching pursuit, Mallat and Zhang, "Matching Pursuits with Time-Frequency Dictionaries", 1993, sec. II, over
normalised correlation, Lewis, "Fast Normalized Cross-Correlation", 1995.
Differs: instead of a mean, the colour of the ground is taken away; what is explained is not subtracted, but its place
is taken, since no two objects of a scene overlap.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from rebus.data.emoji import STYLES, EmojiPack
from rebus.data.scenes import BACKGROUNDS, SCENE_SIZE_PX, SIGN_HEIGHT_PX
from rebus.evaluation.detector import Detection

SIZES_PX = (32, 64, 96)
"""Sides of the boxes that scenes draw objects in."""
_CELL_PX = 4
"""Pictures and emoji are looked at as means of squares of so many pixels: so far apart are the places tried."""
_RIM_PX = 8
"""So far may an object stand out of the picture."""
_LEAST_LIKENESS = 0.75
"""Cosine of a box and an emoji, both without the ground, from which on it is an object."""
_FAINTEST = 0.05
"""A box must differ from the ground by more than so much of full scale to be like anything."""
_UNLIKENESS_COST = 1.2
"""How much heavier what an emoji leaves unexplained of a box weighs than what it explains."""
_MOST_SHARED = 0.3
"""Two objects may share less than this of the smaller one's box."""
_FRAME_PX = 4
"""Width of a board's frame and of the white line within it, and a pixel more."""
_EDGE_REACH_PX = 10
"""So far may the inner edge of a sign's board be from its place."""


class SpriteFinder:
    """Finds objects as a ``Detector`` does, by how like each box of a picture is to each emoji on the same ground.

    Args:
        pack: what the emoji look like.
        concepts: the ids of those that are looked for.

    Raises:
        ValueError: if there are no concepts.
    """

    def __init__(self, pack: EmojiPack, concepts: Sequence[str]) -> None:
        if not concepts:
            raise ValueError("concepts must name at least one concept, got none")
        self.concepts = tuple(concepts)
        self._sprites = {size: _sprites(pack, self.concepts, size) for size in SIZES_PX}
        self._templates: dict[tuple[int, int], Tensor] = {}

    @torch.inference_mode()
    def detect(self, images: Float[Tensor, "batch 3 height width"], batch_size: int = 64) -> list[list[Detection]]:
        """Returns the objects of each picture in [0, 1], those that explain most of it first.

        Raises:
            ValueError: if the pictures have not the size of a scene.
        """
        if images.shape[-2:] != (SCENE_SIZE_PX, SCENE_SIZE_PX):
            raise ValueError(f"images must be scenes of {SCENE_SIZE_PX} px, got {tuple(images.shape[-2:])}")
        return [found for part in images.float().split(batch_size) for found in self._detect(part)]

    def _detect(self, images: Float[Tensor, "batch 3 height width"]) -> list[list[Detection]]:
        grounds, levels = _grounds(images)
        things = _without_signs(images - rearrange(levels, "batch rgb -> batch rgb 1 1"), grounds)
        found: list[list[Detection]] = [[] for _ in images]
        for ground in grounds.unique().tolist():
            rows = (grounds == ground).nonzero()[:, 0]
            for row, objects in zip(rows.tolist(), self._objects(things[rows], ground), strict=True):
                found[row] = objects
        return found

    def _objects(self, things: Float[Tensor, "batch 3 height width"], ground: int) -> list[list[Detection]]:
        """Returns the objects of pictures less their ground, which is one and the same."""
        cells = F.avg_pool2d(F.pad(things, (_RIM_PX,) * 4), _CELL_PX)
        found: list[list[tuple[float, Detection]]] = [[] for _ in things]
        for size in SIZES_PX:
            side = size // _CELL_PX
            energy = F.avg_pool2d(cells.square().sum(dim=1, keepdim=True), side, stride=1) * side**2
            norm = (energy + _FAINTEST**2 * side**2).sqrt()
            likeness, emoji = (F.conv2d(cells, self._template(size, ground)) / norm).max(dim=1)
            explained = energy[:, 0] * (likeness.square() * (1 + _UNLIKENESS_COST) - _UNLIKENESS_COST)
            for picture, row, column in (likeness >= _LEAST_LIKENESS).nonzero().tolist():
                place = picture, row, column
                identifier = self.concepts[int(emoji[place]) // len(STYLES)]
                x, y = (cell * _CELL_PX - _RIM_PX + size / 2 for cell in (column, row))
                one = Detection(identifier, x, y, float(size), min(1.0, float(likeness[place])))
                found[picture].append((float(explained[place]), one))
        return [_apart(objects) for objects in found]

    def _template(self, size: int, ground: int) -> Float[Tensor, "emoji 3 rows columns"]:
        """Returns every emoji of a size on a ground, less the ground, as vectors of length 1."""
        if (size, ground) not in self._templates:
            colors, opacity = self._sprites[size]
            template = colors - opacity * rearrange(_palette()[ground], "rgb -> rgb 1 1")
            norm = template.flatten(1).norm(dim=1).clamp(min=1e-6)
            self._templates[size, ground] = template / rearrange(norm, "emoji -> emoji 1 1 1")
        return self._templates[size, ground]


def _sprites(
    pack: EmojiPack, concepts: Sequence[str], size: int
) -> tuple[Float[Tensor, "emoji 3 rows columns"], Float[Tensor, "emoji 1 rows columns"]]:
    """Returns the colours of the emoji, weighed by their opacity, and the opacity; the styles of a concept in turn."""
    drawn = np.stack([pack.sprite(concept, style, size) for concept in concepts for style in STYLES])
    pixels = rearrange(torch.from_numpy(drawn), "emoji height width rgba -> emoji rgba height width") / 255
    colors, opacity = pixels[:, :3], pixels[:, 3:]
    return F.avg_pool2d(colors * opacity, _CELL_PX), F.avg_pool2d(opacity, _CELL_PX)


def _palette() -> Float[Tensor, "grounds 3"]:
    return torch.tensor(list(BACKGROUNDS.values())) / 255


def _grounds(images: Float[Tensor, "batch 3 height width"]) -> tuple[Int[Tensor, " batch"], Float[Tensor, "batch 3"]]:
    """Returns which ground most cells of each picture are nearest to, and the colour that it has there."""
    cells = rearrange(F.avg_pool2d(images, _CELL_PX), "batch rgb rows columns -> batch (rows columns) rgb")
    nearest = torch.cdist(cells, _palette()).argmin(dim=2)
    grounds = F.one_hot(nearest, len(BACKGROUNDS)).sum(dim=1).argmax(dim=1)
    levels = [
        one[near == ground].median(dim=0).values for one, near, ground in zip(cells, nearest, grounds, strict=True)
    ]
    return grounds, torch.stack(levels)


def _without_signs(
    things: Float[Tensor, "batch 3 height width"], grounds: Int[Tensor, " batch"]
) -> Float[Tensor, "batch 3 height width"]:
    """Returns pictures less their ground with the boards of signs taken away.

    Nothing in a scene but a board is as wide as the picture. What shows its inner edge is a line right across: the
    black frame on a white ground, the white within it on any other.
    """
    palette, white = _palette()[grounds], (1.0, 1.0, 1.0)
    is_white = (palette == torch.tensor(white)).all(dim=1, keepdim=True)
    line = torch.where(is_white, -1.0, torch.tensor(white) - palette)
    along = torch.einsum("nrhw,nr->nhw", things, line) / line.square().sum(dim=1)[:, None, None]
    across = F.avg_pool1d(along.quantile(0.15, dim=2), 2, stride=1) >= 0.4
    result, first = things.clone(), SIGN_HEIGHT_PX - _EDGE_REACH_PX
    for one, rows in zip(result, across, strict=True):
        above, below = (edges[first : SIGN_HEIGHT_PX + _EDGE_REACH_PX].nonzero() for edges in (rows, rows.flip(0)))
        if len(above):
            one[:, : first + int(above[-1]) + _FRAME_PX] = 0
        if len(below):
            one[:, -(first + int(below[-1]) + _FRAME_PX) :] = 0
    return result


def _apart(objects: list[tuple[float, Detection]]) -> list[Detection]:
    """Returns the objects, given with how much they explain, without those whose place a better one has taken."""
    kept: list[Detection] = []
    for _, one in sorted(objects, key=lambda pair: -pair[0]):
        if _free(one, kept):
            kept.append(one)
    return kept


def _free(one: Detection, others: Sequence[Detection]) -> bool:
    """Whether the place of an object is not yet taken by others."""
    for other in others:
        reach, smaller = (one.size + other.size) / 2, min(one.size, other.size)
        across, down = (min(smaller, max(0.0, reach - abs(way))) for way in (one.x - other.x, one.y - other.y))
        if across * down >= _MOST_SHARED * smaller**2:
            return False
    return True
