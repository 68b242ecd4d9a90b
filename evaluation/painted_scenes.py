"""Held-out scenes, their codes, and how good pictures painted from those codes are."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import TASKS, Scene
from rebus.evaluation.detector import SHIPPED_JUDGE, Detector
from rebus.evaluation.frechet import frechet_distance, pooled_features
from rebus.evaluation.intervals import wilson
from rebus.evaluation.judges import Judge, Verdict
from rebus.evaluation.likeness import likeness
from rebus.evaluation.perceptual import FeatureNetwork, efficientnet_lite0
from rebus.evaluation.sign_reader import SignReader
from rebus.model.decoder import DiffusionDecoder
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.rebus import Rebus
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import Tokens

LOWER_IS_BETTER = ("perceptual", "frechet")
_BATCH_SIZE = 32


@runtime_checkable
class SceneJudge(Protocol):
    """Says of pictures whether they show their scenes, as a ``Judge`` does."""

    def verdicts(self, scenes: Sequence[Scene], pictures: UInt8[np.ndarray, "batch height width 3"]) -> list[Verdict]:
        """Returns one verdict for each scene and its picture."""
        ...


@runtime_checkable
class Painter(Protocol):
    """Paints codes, as a ``DecoderPipeline`` does."""

    def render(self, tokens: Tokens, *, steps: int, seed: Sequence[int]) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures in [0, 1]."""
        ...


@dataclass(frozen=True, eq=False)
class PaintedScenes:
    """True pictures and their codes, with the judges of what is painted from them."""

    scenes: Sequence[Scene]
    images: UInt8[Tensor, "batch 3 height width"]
    tokens: Sequence[Tokens]
    """Batches of codes, in the order of the scenes."""
    network: FeatureNetwork
    judge: SceneJudge

    def paint(
        self, render: Callable[[Tokens, Sequence[int]], Tensor], tokens: Sequence[Tokens] | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns what is painted from the codes, or from others; a picture has the same seed at every call."""
        pictures, first = [], 0
        for part in self.tokens if tokens is None else tokens:
            pictures.append(render(part, range(first, first + len(part.ids))))
            first += len(part.ids)
        return torch.cat(pictures)

    def figures(self, pictures: Float[Tensor, "batch 3 height width"]) -> dict[str, Any]:
        """Returns likeness to the true pictures, Frechet distance from them, and the judge's score with its interval.

        The score is the share of pictures in which the judge sees the scene that was encoded.
        """
        return {
            **likeness(pictures, self.images / 255, self.network),
            "frechet": frechet_distance(pooled_features(pictures, self.network), self._true_features),
            "judge": self.judged(pictures),
        }

    def judged(self, pictures: Float[Tensor, "batch 3 height width"]) -> dict[str, float]:
        """Returns the judge's score of pictures, with its interval."""
        shown = rearrange((pictures * 255).round().byte(), "b c h w -> b h w c").numpy()
        return asdict(wilson([one.passed for one in self.judge.verdicts(self.scenes, shown)]))

    @cached_property
    def _true_features(self) -> Float[Tensor, "batch dim"]:
        return pooled_features(self.images / 255, self.network)


def painted_scenes(tokenizer: ImageTokenizer, number: int) -> PaintedScenes:
    """Returns held-out scenes, the tasks in turn, with their codes and the judges of this repository.

    Raises:
        ValueError: if there are fewer than two, or a package that judges is not installed.
    """
    if number < 2:
        raise ValueError(f"limit must be at least 2, got {number}")
    pack = EmojiPack.open()
    sampler = SceneSampler(pack, mini_concepts(pack), "held_out")
    scenes = [sampler.scene(random.Random(f"paint/{row}"), TASKS[row % len(TASKS)]) for row in range(number)]
    images = pictures_of(scenes, pack)
    judge = Judge(Detector.load(SHIPPED_JUDGE), SignReader(), pack)
    tokens = [tokenizer.encode(part) for part in images.split(_BATCH_SIZE)]
    return PaintedScenes(scenes, images, tokens, efficientnet_lite0(), judge)


def painters(model: Rebus, folders: Sequence[Path]) -> dict[str, DecoderPipeline]:
    """Returns decoders of the model's codes by the names of their folders; without any, the model's own.

    Raises:
        ValueError: if a folder holds no decoder, or one of other codes.
    """
    own = model.painter
    expected = model.saved.image_tokenizer_hash
    others = {str(path): DiffusionDecoder.load(path, model.device, tokenizer_hash=expected) for path in folders}
    found = {name: DecoderPipeline(decoder, own.vae) for name, decoder in others.items()}
    return found or {str(model.saved.folder / "decoder"): own}


def share_of(figures: dict[str, Any], best: dict[str, Any]) -> dict[str, float]:
    """Returns how much of the best figures others reach: 1 is as good, 0.95 is 5 % worse, whichever way they count."""
    values, others = ({**one, "judge": one["judge"]["score"]} for one in (figures, best))
    pairs = {name: (others[name], values[name])[:: 1 if name in LOWER_IS_BETTER else -1] for name in values}
    return {name: above / below if below else 1.0 for name, (above, below) in pairs.items()}
