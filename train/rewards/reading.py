"""Rewards a picture in which a saved model, which does not change, reads the prompt: it tells it as a description.

The model encodes the rendered picture, as it would any other, so that what the decoder makes of the codes counts.

Source: as in ``model/drafts.py``; to be rewarded by a model that reads is the alignment reward of X-Omni,
https://arxiv.org/abs/2507.22058.
Differs: the reader is the very model that is trained, as it was before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from rebus.data.samples import Message
from rebus.model.drafts import read_back
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel
from rebus.train.rewards.contract import Reward, check_weight


@dataclass(frozen=True, kw_only=True)
class ReadingRewardConfig:
    """The mean probability that each id of the prompt has in a description of the picture."""

    model: Path
    """Folder of the saved model that reads."""
    weight: float = 1.0
    """By which it is multiplied before all rewards are added."""

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def check(self) -> None:
        """Looks for the model.

        Raises:
            ValueError: if the folder holds none.
        """
        SavedModel.open(self.model)

    def build(self) -> Reward:
        """Returns the function."""
        return ReadingReward(Rebus.load(self.model))


class ReadingReward:
    """Shows pictures to a model and asks for descriptions."""

    def __init__(self, reader: Rebus) -> None:
        self.reader = reader

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Image.Image], **_: Sequence[Any]
    ) -> list[float | None]:
        """Returns the share of the prompt that would be told of each picture, in [0, 1]."""
        writer = self.reader.writer
        shown = [self.reader.look(picture).tokens for picture in completions]
        messages = [Message("user", (prompt,)) for prompt in prompts]
        told = read_back(
            writer.engine,
            writer.text_tokenizer,
            self.reader.saved.caption_request,
            [tokens for tokens in shown if tokens is not None],
            messages,
        )
        return [value / len(writer.text_tokenizer.encode(prompt)) for value, prompt in zip(told, prompts, strict=True)]
