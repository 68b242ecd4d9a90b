"""Spoils codes the way a decoder will meet them: wrong, cut short, or left out for guidance.

Sources: Qiu et al., "Robust Latent Matters", https://arxiv.org/abs/2503.08354, sec. 3.2 (wrong codes); Bachmann et al.,
"FlexTok", https://arxiv.org/abs/2502.13967, sec. 3 (prefixes); Ho and Salimans, "Classifier-Free Diffusion Guidance",
https://arxiv.org/abs/2207.12598, sec. 3.2 (none at all).
"""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from rebus.tokenizers.quantizers.contract import Quantizer


@dataclass(frozen=True, kw_only=True)
class ImperfectCodesConfig:
    """How often codes are spoilt; the shares are of all pictures."""

    dropped: float = 0.1
    """Share of pictures that lose all codes."""
    cut: float = 0.1
    """Share of pictures that keep only their first codes, evenly from one to all."""
    perturbed: float = 0.3
    """Share of pictures, among those with codes, in which some codes are wrong."""
    most_wrong: float = 0.15
    """Highest share of wrong codes in a perturbed picture; it is drawn evenly from 0 on."""

    def __post_init__(self) -> None:
        for name in ("dropped", "cut", "perturbed", "most_wrong"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.dropped + self.cut > 1:
            raise ValueError(f"dropped and cut must be at most 1 together, got {self.dropped + self.cut}")


def spoilt(
    ids: Int[Tensor, "positions streams"], quantizer: Quantizer, config: ImperfectCodesConfig, rng: random.Random
) -> Int[Tensor, "positions streams"]:
    """Returns the codes of a picture as training shows them, -1 where they are missing or were from the first."""
    held = (ids >= 0).all(dim=1, keepdim=True)
    fate = rng.random()
    if fate < config.dropped:
        return torch.full_like(ids, -1)
    if rng.random() < config.perturbed:
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        wrong = quantizer.perturb(ids[None].clamp_min(0), rng.random() * config.most_wrong, generator)[0]
        ids = torch.where(held, wrong, -1)
    if fate < config.dropped + config.cut:
        kept = torch.arange(len(ids), device=ids.device) < rng.randint(1, int(held.sum()))
        ids = torch.where(kept[:, None], ids, -1)
    return ids
