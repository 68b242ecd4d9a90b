"""How much the codes of a picture heed the prompt: logits of several branches of one row, each with another prompt.

Each branch is a row of the same batch, so that guidance reads the weights of the model once, not once for each branch.

Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598, sec. 3.2; for two
scales Brooks et al., "InstructPix2Pix", https://arxiv.org/abs/2211.09800, sec. 3.2.1; for the interval Kynkaanniemi et
al., "Applying Guidance in a Limited Interval", https://arxiv.org/abs/2404.07724.
Differs: the interval counts codes, not levels of noise.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Scales of guidance; of 1 each, the prompt's own branch alone decides."""

    scale: float = 1.0
    """How far to go from what is drawn without the prompt's text to what is drawn with it."""
    picture_scale: float | None = None
    """How far to go from what is drawn without any prompt to what is drawn with the prompt's pictures alone."""
    start: float = 0.0
    """Share of a picture's codes before the first one that is guided."""
    stop: float = 1.0
    """Share of its codes before the first one that is guided no more."""

    def __post_init__(self) -> None:
        for got in (self.scale, self.picture_scale):
            if got is not None and not 0 <= got < float("inf"):
                raise ValueError(f"guidance must be at least 0 and finite, got {got}")
        if not 0 <= self.start <= self.stop <= 1:
            raise ValueError(
                f"guidance must start and stop in 0 <= start <= stop <= 1, got {self.start} and {self.stop}"
            )

    @property
    def num_others(self) -> int:
        """Branches beside the prompt's own: without its text, or with its pictures alone and without anything."""
        if self.picture_scale is not None:
            return 2
        return 0 if self.scale == 1 else 1

    def weights(self, code: int, num_codes: int) -> tuple[float, ...]:
        """Returns by what the logits of each branch are multiplied before they are added; the sum is 1.

        Args:
            code: place of the next code in its picture, from 0.
            num_codes: codes of a picture.
        """
        if not self.start * num_codes <= code < self.stop * num_codes:
            return (1.0, *[0.0] * self.num_others)
        if self.picture_scale is not None:
            return self.scale, self.picture_scale - self.scale, 1 - self.picture_scale
        return (self.scale, 1 - self.scale)[: 1 + self.num_others]
