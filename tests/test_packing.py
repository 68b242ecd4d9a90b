from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.data.packing import PackedBatch, document_mask, pack_row
from rebus.data.rendering import Rendered

PAD, LENGTH = 3, 23
SIZES = st.lists(st.integers(2, LENGTH), max_size=9)


def documents(sizes):
    """Documents whose ids are all different, with every third position not trained and every second one a code."""
    start = 10
    for size in sizes:
        ids = list(range(start, start + size))
        yield Rendered(ids, [-100 if token % 3 == 0 else token for token in ids], [token % 2 for token in ids])
        start += size


@given(SIZES)
def test_a_row_holds_the_first_documents_that_fit_once_and_in_order(sizes):
    row = pack_row(documents(sizes), LENGTH, PAD)
    taken = int(row.documents.max()) + 1
    packed = list(documents(sizes))[:taken]
    filled = sum(len(document.ids) for document in packed)
    assert taken == len(sizes) or filled + sizes[taken] > LENGTH
    padding = LENGTH - filled
    assert row.ids.tolist() == [[token for document in packed for token in document.ids] + [PAD] * padding]
    assert row.targets.tolist() == [[token for document in packed for token in document.targets] + [-100] * padding]
    assert row.modality.tolist() == [[mark for document in packed for mark in document.modality] + [0] * padding]
    assert row.documents.tolist() == [[n for n in range(taken) for _ in packed[n].ids] + [-1] * padding]
    assert row.positions.tolist() == [[p for document in packed for p in range(len(document.ids))] + [0] * padding]


@given(st.lists(SIZES, min_size=1, max_size=3))
def test_the_mask_never_crosses_documents_and_never_looks_ahead(rows):
    batch = PackedBatch.cat([pack_row(documents(sizes), LENGTH, PAD) for sizes in rows])
    mask = document_mask(batch.documents, batch.positions)
    assert mask.shape == (len(rows), 1, LENGTH, LENGTH)
    for row, numbers in enumerate(batch.documents.tolist()):
        expected = [
            [query == key or (key < query and numbers[query] == numbers[key] >= 0) for key in range(LENGTH)]
            for query in range(LENGTH)
        ]
        assert mask[row, 0].tolist() == expected


@given(before=st.integers(0, 5), shared=st.integers(1, 6), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_endings_see_what_they_share_and_not_each_other(before, shared, sizes):
    size = shared + sum(sizes)
    starts = tuple(shared + sum(sizes[:number]) for number in range(len(sizes)))
    whole = replace(next(documents([size])), endings=starts)
    row = pack_row(iter([*documents([before] if before else []), whole]), LENGTH + 1, PAD)
    ending = [0] * shared + [number for number, one in enumerate(sizes, 1) for _ in range(one)]
    own = slice(before, before + size)
    assert row.positions[0, own].tolist() == [
        *range(shared),
        *(shared + place for one in sizes for place in range(one)),
    ]
    expected = [[key <= query and ending[key] in (0, ending[query]) for key in range(size)] for query in range(size)]
    mask = document_mask(row.documents, row.positions)[0, 0]
    assert mask[own, own].tolist() == expected
    assert not mask[own, :before].any() and not mask[own, before + size :].any() and not mask[:before, own].any()


def test_refuses_a_document_longer_than_a_row():
    for sizes in ([LENGTH + 1], [5, LENGTH + 1]):
        with pytest.raises(ValueError, match="a document must have at most 23 ids, the length of a row, got 24"):
            pack_row(documents(sizes), LENGTH, PAD)


def test_reads_no_further_than_the_first_document_that_does_not_fit():
    stream = documents([20, 9, 3])
    assert pack_row(stream, LENGTH, PAD).documents.max() == 0
    assert len(next(stream).ids) == 3


def test_to_moves_every_tensor():
    moved = pack_row(documents([5]), LENGTH, PAD).to("meta")
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}
