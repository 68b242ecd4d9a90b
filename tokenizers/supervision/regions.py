"""A code shall tell what its place shows, where the data knows that."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.contract import Taught, Term


class Regions(Term):
    """Cross entropy of what each position shows, told from its code alone."""

    def __init__(self, weight: float, canvas: Canvas, dim: int, num_names: int) -> None:
        super().__init__()
        if not canvas.on_grid:
            raise ValueError(f"supervision.region must be 0 for codes that lie on no grid, got {weight}")
        self.weight = weight
        self.tell = nn.Sequential(nn.Linear(canvas.feature_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, num_names))

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns ``region``."""
        regions = taught.regions.flatten()
        errors = F.cross_entropy(self.tell(taught.coded.features).float().flatten(0, 1), regions, reduction="none")
        # The ground fills most of a picture and is soon told: things weigh ten times as much.
        weights = torch.where(regions == 0, 0.1, 1.0)
        return {"region": self.weight * (errors * weights).sum() / weights.sum()}
