"""Several documents in one row of a batch: no position is wasted on padding while another document would fit."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rebus.data.rendering import NOT_TRAINED, Rendered


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows of whole documents, each padded at its end; all int64."""

    ids: Int[Tensor, "rows length"]
    targets: Int[Tensor, "rows length"]
    """The same ids, not shifted; -100 where nothing is learned and on padding."""
    modality: Int[Tensor, "rows length"]
    """1 for the code of a picture, else 0."""
    documents: Int[Tensor, "rows length"]
    """The number 0, 1, ... of the document within its row; -1 on padding."""
    positions: Int[Tensor, "rows length"]
    """0, 1, ... from the start of each document; 0 on padding. Several endings of one count on from what they share."""

    def to(self, device: torch.device | str) -> "PackedBatch":
        """Returns the same batch on another device."""
        return PackedBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @classmethod
    def cat(cls, batches: "Sequence[PackedBatch]") -> "PackedBatch":
        """Returns the rows of all batches, which must be of one length, as one batch."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names})


def pack_row(stream: Iterable[Rendered], length: int, pad_id: int) -> PackedBatch:
    """Returns a batch of one row that holds the first documents of ``stream``, as many as fit.

    Reading stops at the first document that does not fit, and that one is lost. Longer documents are lost a little
    more often than short ones, so a row should be many documents long.

    Raises:
        ValueError: if a document that was read is longer than a whole row.
    """
    ids, targets, modality, documents, positions = [], [], [], [], []
    for number, rendered in enumerate(stream):
        size = len(rendered.ids)
        if size > length:
            raise ValueError(f"a document must have at most {length} ids, the length of a row, got {size}")
        if len(ids) + size > length:
            break
        ids += rendered.ids
        targets += rendered.targets
        modality += rendered.modality
        documents += [number] * size
        positions += _positions(rendered)
    columns = ((ids, pad_id), (targets, NOT_TRAINED), (modality, 0), (documents, -1), (positions, 0))
    return PackedBatch(*(torch.tensor([values + [fill] * (length - len(values))]) for values, fill in columns))


def _positions(rendered: Rendered) -> list[int]:
    size, endings = len(rendered.ids), rendered.endings
    if not endings:
        return list(range(size))
    shared = endings[0]
    ended = [range(shared, shared + stop - start) for start, stop in pairwise((*endings, size))]
    return [*range(shared), *(position for ending in ended for position in ending)]


def document_mask(
    documents: Int[Tensor, "rows length"], positions: Int[Tensor, "rows length"]
) -> Bool[Tensor, "rows 1 length length"]:
    """Returns where a query (row of the matrix) may look: at itself and at what comes before it in its document.

    Padding looks at itself only, so that no query is left without a key.
    """
    length = documents.shape[1]
    queries, keys = documents.unsqueeze(2), documents.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=documents.device)
    own = (queries == keys) & (queries >= 0) & causal
    return ((own & leads_to(positions)) | itself).unsqueeze(1)


def leads_to(positions: Int[Tensor, "*rows length"]) -> Bool[Tensor, "*rows length length"]:
    """Returns whether each position (row of the matrix) goes on from an earlier one (column): not from other endings.

    It does unless positions have gone back to that of the earlier one, or further, in between or just now.
    """
    length = positions.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=positions.device).triu(1)
    lowest_since = torch.where(later, positions.unsqueeze(-2), length).cummin(dim=-1).values
    return (lowest_since > positions.unsqueeze(-1)).transpose(-1, -2)
