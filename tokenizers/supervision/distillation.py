"""The features of a frozen teacher, told from the codes or from a hidden layer of the decoder.

From the codes it is feature distillation, as in Qu et al., "TokenFlow", https://arxiv.org/abs/2412.03069, sec. 3; onto
a layer of the decoder it is the alignment of Yu et al., "Representation Alignment for Generation" (REPA),
https://arxiv.org/abs/2410.06940, sec. 3.2, and the semantic regularization of Xiong et al., "GigaTok",
https://arxiv.org/abs/2504.08736, sec. 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.cells import Cells, CellsConfig, resized
from rebus.tokenizers.supervision.contract import Taught, Term
from rebus.tokenizers.supervision.teachers import Teacher, TeacherConfig

DistillationLoss = Literal["cosine", "mse", "both"]


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Whose features are told, from what, and how the error counts."""

    teacher: TeacherConfig
    """The network that has the features."""
    weight: float = 1.0
    """Weight of the term."""
    loss: DistillationLoss = "cosine"
    """One minus the cosine of the angle, the mean squared error, or the sum of both."""
    pooled: bool = False
    """Whether only the mean over a picture is told."""
    cells: CellsConfig = CellsConfig()
    """What tells them."""

    def build(self, name: str, canvas: Canvas, widths: Mapping[str, int]) -> "Distillation":
        """Loads the teacher and builds the term, whose loss is to have a name.

        Raises:
            ValueError: if there is no such teacher, or codes that lie on no grid are to tell it cell by cell.
        """
        teacher = self.teacher.build()
        cells = self.cells.build(teacher.dim, teacher.grid, canvas, widths)
        return Distillation(name, teacher, cells, weight=self.weight, loss=self.loss, pooled=self.pooled)


class Distillation(Term):
    """How far what the codes tell is from the teacher's features, the mean over the cells of our grid.

    Differs: where the grids differ, the teacher's features are brought to ours.
    """

    compiles_whole = False

    def __init__(
        self, name: str, teacher: Teacher, cells: Cells, *, weight: float, loss: DistillationLoss, pooled: bool
    ) -> None:
        super().__init__()
        self.name, self.teacher, self.cells = name, teacher, cells
        self.weight, self.loss, self.pooled = weight, loss, pooled
        self.layers = () if cells.layer is None else (cells.layer,)

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns the one loss by its name."""
        told, grid = self.cells(taught)
        told, target = told.float(), resized(self.teacher(taught.images).float(), self.teacher.grid, grid)
        if self.pooled:
            told, target = told.mean(dim=1), target.mean(dim=1)
        parts = []
        if self.loss != "mse":
            parts.append(1 - F.cosine_similarity(told, target, dim=-1).mean())
        if self.loss != "cosine":
            parts.append(F.mse_loss(told, target))
        return {self.name: self.weight * torch.stack(parts).sum()}
