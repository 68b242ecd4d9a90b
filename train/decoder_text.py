"""What a decoder that reads a text is told in training: a caption of each scene, and of some scenes nothing."""

import random
from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import caption
from rebus.data.scenes import Scene
from rebus.tokenizers.text_condition import TextCondition
from rebus.tokenizers.text_tokenizer import SentencePieceTokenizer


def learn_pieces(text: TextCondition, scenes: SceneSampler, number: int) -> None:
    """Gives a text model the vocabulary of so many captions."""
    captions = (caption(scenes.scene(rng := random.Random(row)), rng, scenes.pack) for row in range(number))
    text.pieces = SentencePieceTokenizer.train(captions, text.config.num_pieces)


def told_pieces(
    text: TextCondition, scenes: Sequence[Scene], sampler: SceneSampler, seeds: Sequence[str]
) -> Int[Tensor, "batch pieces"]:
    """Returns the pieces of a caption of each scene, or of none as often as the config says.

    Args:
        text: the text model.
        scenes: what the pictures show.
        sampler: where they come from.
        seeds: of each.
    """
    rngs = [random.Random(seed) for seed in seeds]
    captions = [caption(scene, rng, sampler.pack) for scene, rng in zip(scenes, rngs, strict=True)]
    rate = text.config.drop_rate
    return text.ids(["" if rng.random() < rate else one for one, rng in zip(captions, rngs, strict=True)])
