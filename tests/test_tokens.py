import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

NESTED = CodeLayout("sequence", 7, (Stream("coarse", 3), Stream("fine", 5)), prefix_decodable=True)
ROW = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=7)


def tokens(rows):
    return Tokens.cat([Tokens(torch.tensor([row]), torch.tensor([len(row)]), NESTED) for row in rows])


def lists(batch):
    return [ids[:length].tolist() for ids, length in zip(batch.ids, batch.lengths, strict=True)]


@given(st.lists(ROW, min_size=1, max_size=4))
def test_a_batch_holds_each_picture_once_and_minus_one_beyond_it(rows):
    batch = tokens(rows)
    assert lists(batch) == [[list(codes) for codes in row] for row in rows]
    assert batch.mask.sum(1).tolist() == [len(row) for row in rows]
    assert (batch.ids[~batch.mask] == -1).all()
    again = Tokens.cat([batch.row(index) for index in range(len(rows))])
    assert torch.equal(again.ids, batch.ids) and torch.equal(again.lengths, batch.lengths)


@given(st.lists(ROW, min_size=1, max_size=4), st.integers(1, 7))
def test_prefix_keeps_the_first_positions_and_no_others(rows, length):
    batch = tokens(rows).prefix(length)
    assert lists(batch) == [[list(codes) for codes in row[:length]] for row in rows]
    assert batch.ids.shape[1] == int(batch.lengths.max())
    assert batch.layout == NESTED


def test_to_keeps_the_codes():
    batch = tokens([[(0, 1)], [(2, 3), (1, 4)]])
    moved = batch.to("cpu")
    assert torch.equal(moved.ids, batch.ids) and torch.equal(moved.lengths, batch.lengths)
    assert moved.layout == batch.layout


@pytest.mark.parametrize("layout", [NESTED, CodeLayout("grid", 6, (Stream("codes", 11),), grid=(2, 3))])
def test_layout_survives_json(layout):
    assert CodeLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "grid", "num_positions": 6, "grid": (2, 4)}, r"6 cells, got \(2, 4\)"),
        ({"kind": "grid", "num_positions": 6}, "6 cells, got None"),
        ({"kind": "grid", "num_positions": 6, "grid": (-2, -3)}, r"6 cells, got \(-2, -3\)"),
        ({"kind": "sequence", "num_positions": 6, "grid": (2, 3)}, "None for a sequence"),
        ({"kind": "sequence", "num_positions": 0}, "num_positions must be at least 1, got 0"),
        ({"kind": "sequence", "num_positions": 6, "streams": ()}, "streams must be"),
        ({"kind": "sequence", "num_positions": 6, "streams": (Stream("a", 2), Stream("a", 3))}, "distinct names"),
    ],
)
def test_layout_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        CodeLayout(**{"streams": (Stream("codes", 5),), **arguments})


def test_stream_refuses_an_empty_code_book():
    with pytest.raises(ValueError, match="size of stream 'codes' must be at least 1, got 0"):
        Stream("codes", 0)


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (torch.zeros(1, 7, 2, dtype=torch.int32), torch.tensor([7]), "int64"),
        (torch.zeros(1, 7, 3, dtype=torch.int64), torch.tensor([7]), "ids must have shape"),
        (torch.zeros(0, 7, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), "at least 1"),
        (torch.zeros(1, 8, 2, dtype=torch.int64), torch.tensor([8]), "at most 7 positions, got 8"),
        (torch.zeros(1, 7, 2, dtype=torch.int64), torch.tensor([0]), r"lengths must lie in \[1, 7\], got \[0\]"),
        (torch.zeros(1, 5, 2, dtype=torch.int64), torch.tensor([6]), r"lengths must lie in \[1, 5\], got \[6\]"),
        (torch.zeros(1, 7, 2, dtype=torch.int64), torch.tensor([6]), "beyond a picture's length must be -1"),
        (torch.full((1, 7, 2), -1), torch.tensor([7]), r"ids must lie in \[0, size\) with sizes \[3, 5\]"),
        (torch.full((1, 7, 2), 3), torch.tensor([7]), r"ids must lie in \[0, size\) with sizes \[3, 5\]"),
    ],
)
def test_tokens_refuse_what_is_no_picture(ids, lengths, message):
    with pytest.raises(ValueError, match=message):
        Tokens(ids, lengths, NESTED)


def test_refuses_layouts_that_differ_and_prefixes_of_nothing():
    other = Tokens(
        torch.zeros(1, 2, 2, dtype=torch.int64), torch.tensor([2]), CodeLayout("sequence", 2, NESTED.streams)
    )
    with pytest.raises(ValueError, match="share one layout, got 2"):
        Tokens.cat([tokens([[(0, 1)]]), other])
    with pytest.raises(ValueError, match="share one layout, got 0"):
        Tokens.cat([])
    for length in (0, 8):
        with pytest.raises(ValueError, match=rf"length must lie in \[1, 7\], got {length}"):
            tokens([[(0, 1)]]).prefix(length)
