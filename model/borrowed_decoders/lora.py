"""Small trained additions inside the base, where freezing it all would not do.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685, sec. 4.1.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class BaseLoraConfig:
    """Low-rank additions to matrices of the base."""

    rank: int = 16
    """Width of the detour."""
    alpha: float = 16.0
    """What the detour returns is multiplied by this over the rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the matrices; these are the attention of every family."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")


def add_lora(base: Any, config: BaseLoraConfig, seed: int) -> None:
    """Puts fresh additions into a frozen base, which change nothing yet; they alone learn.

    Raises:
        ValueError: if the base has no such matrices.
    """
    from peft import LoraConfig

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  # PEFT says int and takes any number
        target_modules=list(config.targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # PEFT draws the additions from the global generator
        base.add_adapter(lora)
    for parameter in base.parameters():
        if parameter.requires_grad:  # a step of training is too small for half precision
            parameter.data = parameter.data.float()


def merged(base: Any) -> Any:
    """Returns a copy of a base with the additions in its matrices, a plain model; a base without any is returned."""
    if not getattr(base, "peft_config", None):
        return base
    plain = deepcopy(base)
    plain.fuse_lora()
    plain.unload_lora()
    return plain
