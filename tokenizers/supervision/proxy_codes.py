"""The codes that another tokenizer gives the picture, told from ours: a first stage without pixels.

Source: Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation" (TiTok),
https://arxiv.org/abs/2406.07550, sec. 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.cells import Cells, CellsConfig
from rebus.tokenizers.supervision.contract import Frozen, Taught, Term
from rebus.tokenizers.supervision.teachers import sized


@dataclass(frozen=True, kw_only=True)
class ProxyCodesConfig:
    """Whose codes are told, and from what."""

    path: Path
    """Folder of an image tokenizer with one grid of codes, such as the shipped one."""
    weight: float = 1.0
    """Weight of the cross entropy a cell, summed over the streams."""
    cells: CellsConfig = CellsConfig()
    """What tells them."""

    def build(self, canvas: Canvas, widths: Mapping[str, int]) -> "ProxyCodes":
        """Loads the other tokenizer and builds the term.

        Raises:
            ValueError: if there is none, its codes lie on no grid, or codes of ours that lie on none are to tell them
                cell by cell.
        """
        target = ImageTokenizer.load(self.path)
        if target.layout.grid is None:
            raise ValueError(f"proxy codes must lie on one grid, got those of a {target.layout.kind} in {self.path}")
        num_outputs = sum(stream.size for stream in target.layout.streams)
        return ProxyCodes(target, self.cells.build(num_outputs, target.layout.grid, canvas, widths), self.weight)


class ProxyCodes(Term):
    """Cross entropy of the other tokenizer's codes at each cell of its grid."""

    compiles_whole = False

    def __init__(self, target: ImageTokenizer, cells: Cells, weight: float) -> None:
        super().__init__()
        assert target.layout.grid is not None
        self.target, self.cells, self.weight = Frozen(target), cells, weight
        self.grid, self.size_px = target.layout.grid, target.config.sizes_px[0]
        self.stream_sizes = [stream.size for stream in target.layout.streams]
        self.layers = () if cells.layer is None else (cells.layer,)

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns ``proxy_codes``."""
        target = self.target.network
        assert isinstance(target, ImageTokenizer)
        dtype = next(target.parameters()).dtype
        with torch.autocast(taught.images.device.type, enabled=False):  # the codes that it gives everywhere else
            ids = target.encode(sized(taught.images, self.size_px).to(dtype)).ids
        told, _ = self.cells(taught, self.grid)
        streams = zip(told.float().split(self.stream_sizes, dim=-1), ids.unbind(dim=-1), strict=True)
        losses = [F.cross_entropy(logits.flatten(0, 1), codes.flatten()) for logits, codes in streams]
        return {"proxy_codes": self.weight * torch.stack(losses).sum()}
