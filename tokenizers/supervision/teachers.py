"""Frozen networks whose features a tokenizer learns to tell: towers of ``transformers``, or another image tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.stock_model import load_stock
from rebus.tokenizers.supervision.contract import Frozen
from rebus.tokenizers.tokens import Grid

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Teacher(nn.Module):
    """A frozen network that has features for each cell of one grid; pictures are brought to the size that it reads."""

    def __init__(
        self,
        network: nn.Module,
        *,
        dim: int,
        grid: Grid,
        size_px: Grid,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        """Takes a network from normalized pictures to features ``"batch cells dim"``, in raster order."""
        super().__init__()
        self.network = Frozen(network)
        self.dim, self.grid, self.size_px = dim, grid, size_px
        self.normalize = Normalize(mean, std)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch cells dim"]:
        """Returns the features of pictures in [0, 1]."""
        return self.network(self.normalize(sized(images, self.size_px)))


@dataclass(frozen=True, kw_only=True)
class TowerTeacherConfig:
    """A vision tower of ``transformers`` (DINO, SigLIP, CLIP ...) in a folder of the user's."""

    path: Path
    """Folder with ``config.json`` and safetensors."""
    hidden_state: int | None = None
    """Which of the hidden states is told, such as -2; the last one, normalized as the tower does it, by default."""

    def build(self) -> Teacher:
        """Loads the tower.

        Raises:
            ValueError: if the folder holds no such tower.
        """
        model = load_stock(self.path)
        tower = getattr(model, "vision_model", model)
        try:
            size_px, patch_px, dim = tower.config.image_size, tower.config.patch_size, tower.config.hidden_size
        except AttributeError as error:
            raise ValueError(f"{self.path} must hold a vision tower of patches, got one without: {error}") from error
        side = size_px // patch_px
        mean, std = _normalization(self.path)
        return Teacher(
            _Tower(tower, self.hidden_state, side * side),
            dim=dim,
            grid=(side, side),
            size_px=(size_px, size_px),
            mean=mean,
            std=std,
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerTeacherConfig:
    """The encoder of an image tokenizer that was trained before, such as the shipped one."""

    path: Path
    """Folder of the tokenizer."""

    def build(self) -> Teacher:
        """Loads the tokenizer.

        Raises:
            ValueError: if the folder holds none.
        """
        tokenizer = ImageTokenizer.load(self.path)
        size = tokenizer.config.sizes_px[0]
        grid, same = tokenizer.encoder.grids(size)[-1], (0.0, 0.0, 0.0)  # an encoder of ours normalizes by itself
        network = _Encoder(tokenizer)
        return Teacher(network, dim=tokenizer.encoder.dim, grid=grid, size_px=size, mean=same, std=(1.0, 1.0, 1.0))


TeacherConfig = TowerTeacherConfig | TokenizerTeacherConfig


class Normalize(nn.Module):
    """Brings pictures in [0, 1] to the mean and spread that a network was trained with."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Returns the normalized pictures."""
        return (images - self.mean) / self.std


def sized(images: Float[Tensor, "batch 3 height width"], size_px: Grid) -> Float[Tensor, "batch 3 rows columns"]:
    """Returns pictures brought to a height and width."""
    if (images.shape[2], images.shape[3]) == size_px:
        return images
    return F.interpolate(images, size_px, mode="bilinear", align_corners=False, antialias=True)


class _Tower(nn.Module):
    def __init__(self, tower: nn.Module, hidden_state: int | None, num_cells: int) -> None:
        super().__init__()
        self.tower, self.hidden_state, self.num_cells = tower, hidden_state, num_cells

    def forward(self, images: Tensor) -> Tensor:
        output = self.tower(pixel_values=images, output_hidden_states=self.hidden_state is not None)
        state = output.last_hidden_state if self.hidden_state is None else output.hidden_states[self.hidden_state]
        return state[:, -self.num_cells :]  # a class token and registers come before the patches


class _Encoder(nn.Module):
    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.encoder = tokenizer.encoder

    def forward(self, images: Tensor) -> Tensor:
        patches = self.encoder(images)
        rows, columns = patches.grids[-1]
        return patches.features[:, -rows * columns :]


def _normalization(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and spread that a folder names for its pictures, else those of ImageNet."""
    file = path / "preprocessor_config.json"
    values = json.loads(file.read_text()) if file.is_file() else {}
    return tuple(values.get("image_mean", IMAGENET_MEAN)), tuple(values.get("image_std", IMAGENET_STD))
