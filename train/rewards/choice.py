"""Which rewards a training adds up, and by what weights."""

from dataclasses import dataclass

from rebus.train.rewards.aesthetics import AestheticsRewardConfig
from rebus.train.rewards.contract import RewardConfig
from rebus.train.rewards.reading import ReadingRewardConfig
from rebus.train.rewards.scene_objects import ObjectsRewardConfig
from rebus.train.rewards.sign_text import SignRewardConfig


@dataclass(frozen=True, kw_only=True)
class RewardsConfig:
    """Rewards by name; those that are left out are not computed."""

    objects: ObjectsRewardConfig | None = None
    """Whether objects, places and ground are those asked for."""
    sign: SignRewardConfig | None = None
    """Whether the sign says what it should."""
    reading: ReadingRewardConfig | None = None
    """Whether a model reads the prompt in the picture."""
    aesthetics: AestheticsRewardConfig | None = None
    """Whether people would find the picture beautiful."""
    workers: int = 2
    """Processes that compute them, beside each process that trains; 0 has it done there."""

    def __post_init__(self) -> None:
        if not self.chosen():
            raise ValueError("rewards must have at least one of objects, sign, reading, aesthetics, got none")
        if self.workers < 0:
            raise ValueError(f"rewards.workers must be at least 0, got {self.workers}")

    def chosen(self) -> dict[str, RewardConfig]:
        """Returns the rewards that are computed."""
        named = {"objects": self.objects, "sign": self.sign, "reading": self.reading, "aesthetics": self.aesthetics}
        return {name: config for name, config in named.items() if config is not None}
