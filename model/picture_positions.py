"""Sequences in which a place of a picture is one position, however many codes stand there.

At each position there is a vector of ids of the vocabulary: the codes of all streams, or a text or control id and then
-1. The flat ids of the vocabulary and these vectors are one to one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rebus.data.packing import PackedBatch
from rebus.data.rendering import NOT_TRAINED
from rebus.tokenizers.vocabulary import Vocabulary


class GivenFeatures(NamedTuple):
    """Features of pictures that are shown, which stand for their codes."""

    places: Int[Tensor, " given"]
    """Positions, rows laid end to end."""
    features: Float[Tensor, "given feature_dim"]


@dataclass(frozen=True, eq=False)
class PositionBatch:
    """Packed documents by position, and what is to be predicted."""

    ids: Int[Tensor, "rows length streams"]
    documents: Int[Tensor, "rows length"]
    """The number 0, 1, ... of the document within its row; -1 on padding."""
    positions: Int[Tensor, "rows length"]
    """0, 1, ... from the start of each document; 0 on padding."""
    text_places: Int[Tensor, " texts"]
    """Positions, rows laid end to end, whose next id is a text or control id to be learned."""
    text_ids: Int[Tensor, " texts"]
    """Those next ids."""
    code_places: Int[Tensor, " pictures"]
    """Positions whose next one is a place of a picture to be learned."""
    codes: Int[Tensor, "pictures streams"]
    """The codes there, each counted from the first of its stream."""
    num_targets: Float[Tensor, " parts"]
    """By which the losses of text and of codes are divided: ids, however many stand at a position; or their mean over
    the processes that share a step."""
    given: GivenFeatures | None = None


def to_positions(ids: Int[Tensor, " length"], vocabulary: Vocabulary) -> Int[Tensor, "positions streams"]:
    """Returns the vectors of a sequence of flat ids, whose positions are whole."""
    starts = torch.tensor(_stream_starts(vocabulary), device=ids.device)
    streams = (ids.unsqueeze(1) >= starts[1:]).sum(dim=1)
    places = (streams == 0).cumsum(dim=0) - 1
    vectors = ids.new_full((int((streams == 0).sum()), len(starts)), -1)
    vectors[places, streams] = ids
    return vectors


def num_positions(ids: Sequence[int], vocabulary: Vocabulary) -> int:
    """Returns how many positions flat ids take."""
    stop = vocabulary.code_range(0)[1]
    return sum(token < stop for token in ids)


def given_features(
    ids: Int[Tensor, "positions streams"],
    vocabulary: Vocabulary,
    features: Sequence[Float[Tensor, "picture_positions feature_dim"] | None],
) -> GivenFeatures | None:
    """Returns where the features of pictures belong; None if there are none.

    Args:
        ids: vectors of a sequence whose pictures are whole.
        vocabulary: of the ids.
        features: of each picture in turn; None where its codes are read.

    Raises:
        ValueError: if there are not as many as pictures, or not one for each position of a picture.
    """
    length = vocabulary.layout.num_positions
    places = (ids[:, 0] >= vocabulary.control_range[1]).nonzero().squeeze(1).view(-1, length)
    if len(features) != len(places):
        raise ValueError(f"features must be one for each of {len(places)} pictures, got {len(features)}")
    shown = [index for index, one in enumerate(features) if one is not None]
    stacked = [one for one in features if one is not None]
    if wrong := [len(one) for one in stacked if len(one) != length]:
        raise ValueError(f"features of a picture must be one for each of {length} positions, got {wrong[0]}")
    return GivenFeatures(places[shown].flatten(), torch.cat(stacked)) if shown else None


def position_batch(
    packed: PackedBatch,
    vocabulary: Vocabulary,
    features: Sequence[Float[Tensor, "picture_positions feature_dim"] | None] = (),
) -> PositionBatch:
    """Returns packed documents by position.

    Args:
        packed: documents of flat ids.
        vocabulary: of the ids.
        features: of each picture in turn, rows laid end to end; None where its codes are read, and none at all if all
            are read as codes.

    Raises:
        ValueError: as ``given_features``.
    """
    second = vocabulary.code_range(0)[1]
    begins = packed.ids < second

    def by_position(values: Int[Tensor, "rows length"], fill: int) -> Int[Tensor, "rows positions"]:
        columns = [row[kept] for row, kept in zip(values, begins, strict=True)]
        return pad_sequence(columns, batch_first=True, padding_value=fill)

    vectors = [to_positions(row, vocabulary) for row in packed.ids]
    ids = pad_sequence(vectors, batch_first=True, padding_value=-1)
    ids[..., 0] = by_position(packed.ids, vocabulary.pad)
    documents = by_position(packed.documents, -1)
    # A document's first id, bos, is no target, so no position has to predict across documents.
    following = F.pad(by_position(packed.targets, NOT_TRAINED)[:, 1:], (0, 1), value=NOT_TRAINED).flatten()
    flat = rearrange(ids, "rows length streams -> (rows length) streams")
    first_code = vocabulary.control_range[1]
    text_places = ((following >= 0) & (following < first_code)).nonzero().squeeze(1)
    code_places = (following >= first_code).nonzero().squeeze(1)
    codes = flat[code_places + 1] - torch.tensor(_stream_starts(vocabulary), device=flat.device)
    return PositionBatch(
        ids=ids,
        documents=documents,
        positions=_from_document_start(documents),
        text_places=text_places,
        text_ids=following[text_places],
        code_places=code_places,
        codes=codes,
        num_targets=torch.tensor([len(text_places), codes.numel()], dtype=torch.float32),
        given=given_features(flat, vocabulary, features) if features else None,
    )


def _from_document_start(documents: Int[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    is_first = torch.ones_like(documents, dtype=torch.bool)
    is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = places.where(is_first, 0).cummax(dim=1).values
    return (places - starts).where(documents >= 0, 0)


def _stream_starts(vocabulary: Vocabulary) -> list[int]:
    return [vocabulary.code_range(stream)[0] for stream in range(len(vocabulary.layout.streams))]
