"""A small key-point detector that names the objects of a composed scene; it judges drawings and is never a teacher.

Each object is a peak at its centre in a heat map with one channel per concept, and a size regressed at that peak.

Source: Zhou et al., "Objects as Points", https://arxiv.org/abs/1904.07850, sec. 3 and 4.
Differs: no offset head (a cell of 8 px is finer than any question asked here), one size per object (boxes are squares),
and no two objects may share a place, whatever their concepts.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHIPPED_JUDGE = Path(__file__).parent.parent / "assets" / "judge"
"""The detector that judges the models of this repository."""
STRIDE = 8
"""Pixels of the picture that one cell of the heat map covers, in each direction."""


@dataclass(frozen=True)
class Detection:
    """One object found in a picture."""

    concept_id: str
    """Which concept it is."""
    x: float
    """Horizontal centre in pixels, from the left."""
    y: float
    """Vertical centre in pixels, from the top."""
    size: float
    """Side of its square box in pixels."""
    score: float
    """Confidence in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The shape of a detector."""

    concepts: tuple[str, ...]
    """Concept ids, in the order of the heat map's channels."""
    image_size: int = 128
    """Side of the pictures in pixels; a multiple of 16."""
    width: int = 96
    """Channels at stride 8; half of it at stride 4, five thirds of it at stride 16."""
    depth: int = 3
    """Residual blocks at stride 16."""
    threshold: float = 0.3
    """A peak counts as an object from this score on."""

    def __post_init__(self) -> None:
        if self.image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16, got {self.image_size}")
        if not self.concepts:
            raise ValueError("concepts must name at least one concept, got none")

    def build(self) -> "Detector":
        """Returns a fresh detector."""
        return Detector(self.concepts, self.image_size, self.width, self.depth, self.threshold)


class Detector(nn.Module):
    """A picture in, a heat map of concepts and a map of sizes out."""

    def __init__(self, concepts: tuple[str, ...], image_size: int, width: int, depth: int, threshold: float) -> None:
        super().__init__()
        self.concepts, self.image_size, self.threshold = concepts, image_size, threshold
        self.config = DetectorConfig(
            concepts=concepts, image_size=image_size, width=width, depth=depth, threshold=threshold
        )
        half, deep = width // 2, width * 5 // 3
        self.stem = nn.Sequential(_convolution(3, half, kernel=4, stride=4), _Residual(half))
        self.fine = nn.Sequential(_convolution(half, width, stride=2), _Residual(width), _Residual(width))
        self.coarse = nn.Sequential(_convolution(width, deep, stride=2), *(_Residual(deep) for _ in range(depth)))
        self.narrow = nn.Conv2d(deep, width, kernel_size=1)
        self.merge = _Residual(width)
        self.head = nn.Conv2d(width, len(concepts) + 1, kernel_size=1)
        # Objects are rare: their scores start near one in a hundred, as focal losses want.
        self.head.bias = nn.Parameter(torch.tensor([-4.6] * len(concepts) + [0.0]))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch concepts rows columns"], Float[Tensor, "batch rows columns"]]:
        """Returns the logits of the heat map and the sizes in units of the picture's side, for pictures in [0, 1]."""
        fine = self.fine(self.stem((images - 0.5) * 4).contiguous(memory_format=torch.channels_last))
        coarse = F.interpolate(self.narrow(self.coarse(fine)), scale_factor=2.0, mode="nearest")
        output = self.head(self.merge(fine + coarse)).float()
        return output[:, :-1], output[:, -1].sigmoid()

    @torch.inference_mode()
    def detect(self, images: Float[Tensor, "batch 3 height width"], batch_size: int = 64) -> list[list[Detection]]:
        """Returns the objects of each picture in [0, 1], the surest first.

        Raises:
            ValueError: if the pictures are not of this detector's size.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"images must be {self.image_size} px squares, got {tuple(images.shape[-2:])}")
        assert not self.training, "a detector judges in evaluation mode"
        found = []
        for part in images.split(batch_size):
            logits, sizes = self(part)
            found += self._objects(logits.sigmoid(), sizes * self.image_size)
        return found

    def save(self, folder: Path) -> None:
        """Writes config.json and model.safetensors (bfloat16: nothing here needs more) into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n")
        state = {name: _narrowed(tensor.cpu()) for name, tensor in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    @staticmethod
    def load(folder: Path) -> "Detector":
        """Returns the detector saved in the folder, ready to judge.

        Raises:
            ValueError: if the folder holds no detector.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            model = DetectorConfig(**(config | {"concepts": tuple(config["concepts"])})).build()
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
            wanted = "folder must hold a saved detector (config.json, model.safetensors)"
            raise ValueError(f"{wanted}, got {folder} ({error})") from error
        return model.eval()

    def _objects(
        self, heat: Float[Tensor, "batch concepts rows columns"], sizes: Float[Tensor, "batch rows columns"]
    ) -> list[list[Detection]]:
        """Returns the local maxima above the threshold; of two in one place only the surer stays."""
        best, concept = heat.max(dim=1)
        peaks = (best >= self.threshold) & (best == F.max_pool2d(best, kernel_size=3, stride=1, padding=1))
        found: list[list[Detection]] = [[] for _ in heat]
        for picture, row, column in peaks.nonzero().tolist():
            x, y = ((column + 0.5) * STRIDE, (row + 0.5) * STRIDE)
            identifier = self.concepts[int(concept[picture, row, column])]
            size, score = float(sizes[picture, row, column]), float(best[picture, row, column])
            found[picture].append(Detection(identifier, x, y, size, score))
        return [_apart(sorted(objects, key=lambda one: -one.score)) for objects in found]


def focal_loss(
    logits: Float[Tensor, "batch concepts rows columns"], heat: Float[Tensor, "batch concepts rows columns"]
) -> Float[Tensor, ""]:
    """Returns the loss of a heat map whose target is 1 at the centres and falls off around them, per centre.

    Source: "Objects as Points", eq. 1, with its alpha = 2 and beta = 4.
    """
    centre = heat == 1
    probability = logits.sigmoid()
    found = (1 - probability) ** 2 * F.logsigmoid(logits)
    empty = (1 - heat) ** 4 * probability**2 * F.logsigmoid(-logits)
    return -torch.where(centre, found, empty).sum() / centre.sum().clamp(min=1)


def heat_targets(
    objects: Int[Tensor, "objects 5"], num_concepts: int, num_pictures: int, num_cells: int
) -> tuple[Float[Tensor, "batch concepts rows columns"], Int[Tensor, "objects 3"]]:
    """Returns the heat map for objects given as (picture, concept, centre x, centre y, size) in pixels.

    The second result holds (picture, row, column) of each object's peak. The peaks widen with the objects.
    """
    picture, concept, x, y, size = objects.unbind(1)
    row, column = (y // STRIDE).clamp(0, num_cells - 1), (x // STRIDE).clamp(0, num_cells - 1)
    cells = torch.arange(num_cells)
    squared = rearrange((cells - row[:, None]) ** 2, "objects rows -> objects rows 1") + rearrange(
        (cells - column[:, None]) ** 2, "objects columns -> objects 1 columns"
    )
    spread = rearrange(size / 48, "objects -> objects 1 1")
    bumps = torch.exp(-squared / (2 * spread**2))
    heat = torch.zeros(num_pictures * num_concepts, num_cells * num_cells)
    channel = (picture * num_concepts + concept)[:, None].expand(-1, num_cells * num_cells)
    heat.scatter_reduce_(0, channel, bumps.flatten(1), reduce="amax")
    return heat.view(num_pictures, num_concepts, num_cells, num_cells), torch.stack([picture, row, column], dim=1)


def _apart(objects: list[Detection]) -> list[Detection]:
    """Returns the objects without those whose centre lies near the centre of a surer one."""
    kept: list[Detection] = []
    for one in objects:
        reach = [0.5 * max(one.size, other.size) for other in kept]
        if all(
            max(abs(one.x - other.x), abs(one.y - other.y)) >= limit for other, limit in zip(kept, reach, strict=True)
        ):
            kept.append(one)
    return kept


class _Residual(nn.Module):
    """x + activation(norm(convolution(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = _convolution(width, width)

    def forward(self, features: Float[Tensor, "batch width rows columns"]) -> Float[Tensor, "batch width rows columns"]:
        return features + self.block(features)


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    padding = (kernel - 1) // 2 if kernel != stride else 0
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


def _narrowed(tensor: Tensor) -> Tensor:
    return (tensor.bfloat16() if tensor.is_floating_point() else tensor).contiguous()
