"""How much a painted picture heeds its codes: from the velocity without codes to the one with them, and beyond.

Sources: Ho and Salimans, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598, sec. 3.2; Sadat et
al., "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
https://arxiv.org/abs/2410.02416, sec. 4 and algorithm 1 (adaptive projected guidance).
Differs: adaptive projected guidance works on velocities, as FlexTok's does, not on the clean data they point to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Guide = Callable[[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]], Float[Tensor, "batch ..."]]
"""The velocities with codes and without them to the one that is followed."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveProjectedGuidance:
    """Goes a bounded way, and not along the velocity with codes, which would only add contrast.

    The defaults are those of FlexTok, https://arxiv.org/abs/2502.13967, and its released code.
    """

    scale: float
    """How far to go from the velocity without codes to that with codes; 1 is plain, more is stricter."""
    norm_threshold: float = 2.5
    """Length at which a picture's step from the one velocity to the other is cut."""
    momentum: float = -0.5
    """Share of the steps before that is added to a step; below 0 it turns away from them."""
    eta: float = 0.0
    """Share that is kept of the part along the velocity with codes; 1 keeps all."""

    def __post_init__(self) -> None:
        if not self.norm_threshold > 0:
            raise ValueError(f"norm_threshold must be more than 0, got {self.norm_threshold}")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum must be between -1 and 1, got {self.momentum}")


DecoderGuidance = float | AdaptiveProjectedGuidance
"""A number is the scale of plain classifier-free guidance."""


def guide(guidance: DecoderGuidance) -> Guide | None:
    """Returns what guides one batch from noise to pictures; None if the velocity with codes needs no guidance.

    Raises:
        ValueError: if the scale is below 0 or not finite.
    """
    scale = guidance.scale if isinstance(guidance, AdaptiveProjectedGuidance) else guidance
    if not 0 <= scale < float("inf"):
        raise ValueError(f"guidance must be at least 0 and finite, got {scale}")
    if scale == 1:
        return None
    if isinstance(guidance, AdaptiveProjectedGuidance):
        return _Projected(guidance)
    return lambda with_codes, without: without + scale * (with_codes - without)


class _Projected:
    """Adaptive projected guidance, which remembers the steps it has taken."""

    def __init__(self, config: AdaptiveProjectedGuidance) -> None:
        self.config = config
        self.average: Tensor | float = 0.0

    def __call__(
        self, with_codes: Float[Tensor, "batch ..."], without: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        config = self.config
        self.average = with_codes - without + config.momentum * self.average
        step = self.average.flatten(1)
        step = step * (config.norm_threshold / step.norm(dim=1, keepdim=True)).clamp(max=1)
        direction = F.normalize(with_codes.flatten(1), dim=1)
        along = (step * direction).sum(dim=1, keepdim=True) * direction
        return with_codes + (config.scale - 1) * (step - (1 - config.eta) * along).view_as(with_codes)
