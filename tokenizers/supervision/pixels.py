"""Rebuilt pixels shall be those of the picture."""

import torch.nn.functional as F
from torch import Tensor

from rebus.tokenizers.supervision.contract import Taught, Term


class Pixels(Term):
    """Mean absolute and mean squared error of rebuilt pixels."""

    def __init__(self, l1: float, l2: float) -> None:
        super().__init__()
        self.l1, self.l2 = l1, l2

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns ``pixel_l1`` and ``pixel_l2``, as far as they weigh."""
        losses = {}
        if self.l1:
            losses["pixel_l1"] = self.l1 * F.l1_loss(taught.rebuilt, taught.images)
        if self.l2:
            losses["pixel_l2"] = self.l2 * F.mse_loss(taught.rebuilt, taught.images)
        return losses
