"""Codes level by level: where a layout has levels, coarse to fine, all codes of one are drawn in a single pass.

A query is read at the position of each code of a level and asks for it: the id that opens pictures, put where the code
will stand. It sees what is before its level and the queries before it in its level; nothing else sees a query, so what
a model has read is the plain sequence as ever. Codes of a level are drawn without knowing of one another, which suits
levels that add to those before them.

Source: Zhang et al., "ResTok: Learning Hierarchical Residuals in 1D Visual Tokenizers for Autoregressive Image
Generation", https://arxiv.org/abs/2601.03955 (a level at once); Wang et al., "Parallelized Autoregressive Visual
Generation", https://arxiv.org/abs/2412.15119.
Differs: queries beside the plain sequence, so that a stock model can learn them, and draw code by code as well.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rebus.data.packing import PackedBatch, document_mask
from rebus.data.rendering import NOT_TRAINED
from rebus.model.language_model import HeadTargets, LanguageBatch, language_batch
from rebus.tokenizers.vocabulary import Vocabulary


def level_batch(packed: PackedBatch, vocabulary: Vocabulary) -> LanguageBatch:
    """Returns packed documents, and behind those of each row the queries for the pictures that are to be learned.

    Their codes are targets twice: of the queries, and of the ids before them. A model must attend by the batch's mask
    (``attn_implementation="sdpa"``).
    """
    places, reach = _queries(packed, vocabulary)
    is_query, index = places >= 0, places.clamp_min(0)
    columns = {
        "ids": torch.where(is_query, vocabulary.begin_picture, vocabulary.pad),
        "targets": torch.full_like(places, NOT_TRAINED),
        "modality": torch.zeros_like(places),
        "documents": torch.full_like(places, -1),
        "positions": packed.positions.gather(1, index),
    }
    both = PackedBatch(**{name: torch.cat([getattr(packed, name), added], 1) for name, added in columns.items()})
    batch = language_batch(both, vocabulary)
    asked = F.pad(is_query, (packed.ids.shape[1], 0)).flatten().nonzero().squeeze(1)
    heads = (*batch.heads, *_query_heads(asked, packed.ids.gather(1, index)[is_query], vocabulary))
    num_targets = torch.tensor([len(head.places) for head in heads], dtype=torch.float32)
    mask = _mask(packed.documents, packed.positions, places, reach)
    return replace(batch, heads=heads, num_targets=num_targets, mask=mask)


def _queries(
    packed: PackedBatch, vocabulary: Vocabulary
) -> tuple[Int[Tensor, "rows queries"], Int[Tensor, "rows queries"]]:
    """Returns where in its row the code of each query stands, and the last place that it may see; padded with -1."""
    levels = list(pairwise(vocabulary.level_starts))
    codes = torch.arange(vocabulary.num_codes)
    firsts = torch.cat([torch.full((stop - start,), start) for start, stop in levels])
    learned = (packed.modality == 1) & (packed.targets != NOT_TRAINED)
    opens = (packed.ids == vocabulary.begin_picture) & F.pad(learned[:, 1:], (0, 1))
    begins = [row.nonzero() for row in opens.cpu()]
    places = [(row + 1 + codes).flatten() for row in begins]
    reach = [(row + firsts).flatten() for row in begins]
    padded = (pad_sequence(rows, batch_first=True, padding_value=-1) for rows in (places, reach))
    first, second = (rows.to(packed.ids.device) for rows in padded)
    return first, second


def _query_heads(
    places: Int[Tensor, " queries"], ids: Int[Tensor, " queries"], vocabulary: Vocabulary
) -> Iterator[HeadTargets]:
    """Yields the targets of the queries for each stream."""
    for stream in range(len(vocabulary.layout.streams)):
        start, stop = vocabulary.code_range(stream)
        chosen = (ids >= start) & (ids < stop)
        yield HeadTargets(places[chosen], ids[chosen] - start, start, stop)


def _mask(
    documents: Int[Tensor, "rows length"],
    positions: Int[Tensor, "rows length"],
    places: Int[Tensor, "rows queries"],
    reach: Int[Tensor, "rows queries"],
) -> Bool[Tensor, "rows 1 length_and_queries length_and_queries"]:
    """Returns where a position may look. Queries of one level are those with the same reach."""
    length, number = documents.shape[1], places.shape[1]
    own = documents.gather(1, places.clamp_min(0)).unsqueeze(2)
    before = torch.arange(length, device=places.device) <= reach.unsqueeze(2)
    to_ids = (documents.unsqueeze(1) == own) & before
    earlier = torch.ones(number, number, dtype=torch.bool, device=places.device).tril()
    to_queries = (reach.unsqueeze(2) == reach.unsqueeze(1)) & earlier
    plain = F.pad(document_mask(documents, positions), (0, number))
    return torch.cat([plain, torch.cat([to_ids, to_queries], dim=2).unsqueeze(1)], dim=2)
