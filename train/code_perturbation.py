"""Wrong codes before the eyes of the pixel decoder, so that it learns to live with those that a model samples.

Source: Qiu et al., "Robust Latent Matters: Boosting Image Generation with Sampling Error Synthesis" (RobustTok),
https://arxiv.org/abs/2503.08354, sec. 3.2; Huang et al., "ILLUME+", https://arxiv.org/abs/2504.01934, sec. 3
(random pixel codes in a tenth of the batches).
Differs: each picture draws by itself whether it is among those that are perturbed; which codes may take the place of
one is the quantizer's to say.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from rebus.tokenizers.image_tokenizer import Coded, ImageTokenizer


@dataclass(frozen=True, kw_only=True)
class CodePerturbationConfig:
    """How many pictures are perturbed, how much, and how that falls off."""

    share: float = 0.1
    """Share of the pictures in which codes are replaced."""
    rate: float = 1.0
    """Probability with which a code of such a picture is replaced."""
    fall: tuple[int, int] | None = None
    """Steps between which the rate falls in a straight line to zero, such as (20000, 60000); never by default."""

    def __post_init__(self) -> None:
        for name in ("share", "rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"perturbation.{name} must be in [0, 1], got {getattr(self, name)}")
        if self.fall is not None and not 0 <= self.fall[0] < self.fall[1]:
            raise ValueError(f"perturbation.fall must be two steps, the later one second, got {self.fall}")

    def rate_at(self, step: int) -> float:
        """Returns the probability with which a code is replaced in a step."""
        if self.fall is None:
            return self.rate
        first, last = self.fall
        return self.rate * min(1.0, max(0.0, (last - step) / (last - first)))


@torch.no_grad()
def perturbed_ids(
    ids: Int[Tensor, "batch positions streams"],
    tokenizer: ImageTokenizer,
    config: CodePerturbationConfig,
    step: int,
    seeds: Int[Tensor, " batch"],
) -> Int[Tensor, "batch positions streams"]:
    """Returns the codes of pictures with some replaced; a picture's draws depend on its seed and the step alone."""
    rate, rows = config.rate_at(step), ids.clone()
    for row, seed in enumerate(seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        if rate and torch.rand((), generator=generator) < config.share:
            rows[row] = tokenizer.quantizer.perturb(ids[row : row + 1], rate, generator)[0]
    return rows


def with_codes(coded: Coded, ids: Int[Tensor, "batch positions streams"], tokenizer: ImageTokenizer) -> Coded:
    """Returns coded pictures with other codes; gradients still pass straight through to the encoder's features."""
    with torch.no_grad():
        old, new = (
            tokenizer.positions.arrange(tokenizer.quantizer.lookup(one), coded.mask)[0] for one in (coded.ids, ids)
        )
    return replace(coded, ids=ids, features=coded.features + (new - old))
