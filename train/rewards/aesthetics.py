"""Rewards a picture that people would find beautiful, by a predictor of the user's own: CLIP and a head on it.

The folder holds a stock CLIP of ``transformers``, or its vision tower alone, and beside it LAION's head as safetensors:

    head = torch.load("sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    safetensors.torch.save_file(head, folder / "aesthetics.safetensors")

Source: https://github.com/christophschuhmann/improved-aesthetic-predictor at 3ade56d, ``simple_inference.py``; the one
of a single layer, https://github.com/LAION-AI/aesthetic-predictor at ed023c0, ``asthetics_predictor.ipynb``.
Differs: what they rate from 1 to 10 is divided by 10, so that it weighs like other rewards.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rebus.model.fitting_weights import load_fitting
from rebus.tokenizers.stock_model import load_stock
from rebus.train.rewards.contract import Reward, check_weight

HEAD = "aesthetics.safetensors"
"""The head's file in the folder."""
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that CLIP was trained with."""
_BEST_RATING = 10.0


@dataclass(frozen=True, kw_only=True)
class AestheticsRewardConfig:
    """The rating that people would give the picture, whatever was asked for; 1 is the best that they may give."""

    folder: Path
    """Folder of CLIP and of the head."""
    weight: float = 1.0
    """By which it is multiplied before all rewards are added."""

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def check(self) -> None:
        """Reads the predictor, so that what is wrong with it is told before any work.

        Raises:
            ValueError: if the folder lacks a part, or has weights that do not fit.
        """
        self.build()

    def build(self) -> Reward:
        """Returns the function.

        Raises:
            ValueError: as ``check``.
        """
        if not self.folder.is_dir():
            raise ValueError(f"aesthetics.folder must be a folder with CLIP and {HEAD}, got {self.folder}")
        from transformers import CLIPVisionModelWithProjection

        tower = load_stock(self.folder, CLIPVisionModelWithProjection).eval()
        return AestheticsReward(tower, read_head(self.folder / HEAD, tower.config.projection_dim))


class AestheticsReward:
    """Rates what is in the middle of pictures: the largest square."""

    def __init__(self, tower: Any, head: nn.Module) -> None:
        self.tower, self.head = tower, head

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Image.Image], **_: Sequence[Any]
    ) -> list[float | None]:
        """Returns the rating of each picture, a tenth of what LAION's predictor says."""
        del prompts
        side = self.tower.config.image_size
        pixels = torch.stack([clip_pixels(picture, side) for picture in completions])
        embeddings = F.normalize(self.tower(pixels).image_embeds, dim=-1)
        return (self.head(embeddings).squeeze(1) / _BEST_RATING).tolist()


def clip_pixels(picture: Image.Image, side: int) -> Float[Tensor, "3 side side"]:
    """Returns the middle of a picture as CLIP sees it, in the resizing of PIL.

    Source: ``CLIPImageProcessor`` of ``transformers``, without torchvision.
    """
    width, height = (side * length // min(picture.size) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    whole = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(whole.crop((left, top, left + side, top + side)), dtype=np.float32)) / 255
    return rearrange((pixels - torch.tensor(_MEAN)) / torch.tensor(_STD), "height width rgb -> rgb height width")


def read_head(path: Path, dim: int) -> nn.Module:
    """Returns the head in a file: LAION's five layers, or the one of its first predictor.

    Raises:
        ValueError: if there is no such file, or it holds another head.
    """
    if not path.is_file():
        raise ValueError(f"{path} must hold the head of the aesthetics predictor, got no such file")
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} must be a file of safetensors, got {error}") from error
    head = nn.Linear(dim, 1) if "weight" in names else nn.Sequential(OrderedDict(layers=_laion_layers(dim)))
    load_fitting(head, path, to=f"LAION's head for embeddings of {dim} numbers")
    return head.eval()


def _laion_layers(dim: int) -> nn.Sequential:
    """Returns the layers by their names in LAION's files; there is nothing between them once nothing is dropped."""
    return nn.Sequential(
        nn.Linear(dim, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
