import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens
from rebus.tokenizers.vocabulary import Vocabulary


def draw_vocabulary(data):
    sizes = data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=4))
    streams = tuple(Stream(f"stream{index}", size) for index, size in enumerate(sizes))
    num_positions, prefix_decodable = data.draw(st.integers(1, 7)), data.draw(st.booleans())
    layout = CodeLayout("sequence", num_positions, streams, prefix_decodable=prefix_decodable)
    return Vocabulary(data.draw(st.integers(4, 50)), layout)


def draw_row(data, layout):
    length = data.draw(st.integers(1, layout.num_positions)) if layout.prefix_decodable else layout.num_positions
    position = st.tuples(*[st.integers(0, stream.size - 1) for stream in layout.streams])
    codes = data.draw(st.lists(position, min_size=length, max_size=length))
    return Tokens(torch.tensor([codes]), torch.tensor([length]), layout)


@given(st.data())
def test_ranges_are_disjoint_and_cover_every_id(data):
    vocabulary = draw_vocabulary(data)
    codes = [vocabulary.code_range(stream) for stream in range(len(vocabulary.layout.streams))]
    ranges = [vocabulary.text_range, vocabulary.control_range, *codes]
    assert [token for start, stop in ranges for token in range(start, stop)] == list(range(vocabulary.size))
    assert [stop - start for start, stop in codes] == [stream.size for stream in vocabulary.layout.streams]
    control = [vocabulary.begin_picture, vocabulary.end_picture, vocabulary.user, vocabulary.assistant]
    assert control == list(range(*vocabulary.control_range))
    names = vocabulary.names_beyond_text()
    assert len(set(names)) == len(names) == vocabulary.size - vocabulary.num_text


@given(st.data())
def test_unflatten_inverts_flatten(data):
    vocabulary = draw_vocabulary(data)
    row = draw_row(data, vocabulary.layout)
    flat = vocabulary.flatten(row)
    again = vocabulary.unflatten(flat)
    assert torch.equal(again.ids, row.ids) and torch.equal(again.lengths, row.lengths)
    assert vocabulary.flatten(again) == flat
    num_streams = len(vocabulary.layout.streams)
    for index, token in enumerate(flat):
        start, stop = vocabulary.code_range(index % num_streams)
        assert start <= token < stop


def test_codes_stand_position_after_position(vocabulary):
    ids = torch.tensor([[[0, 10], [1, 9], [2, 8], [3, 7], [4, 6], [5, 5]]])
    coarse, fine = vocabulary.code_range(0)[0], vocabulary.code_range(1)[0]
    flat = vocabulary.flatten(Tokens(ids, torch.tensor([6]), vocabulary.layout))
    assert flat == [start + code for pair in ids[0].tolist() for start, code in zip((coarse, fine), pair, strict=True)]
    assert vocabulary.num_codes == len(flat) == 12


def test_survives_json(vocabulary):
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


def test_refuses_every_id_out_of_its_stream(vocabulary):
    flat = vocabulary.flatten(Tokens(torch.zeros(1, 6, 2, dtype=torch.int64), torch.tensor([6]), vocabulary.layout))
    for token in (-1, vocabulary.bos, vocabulary.end_picture, vocabulary.code_range(0)[0], vocabulary.size):
        with pytest.raises(ValueError, match=rf"code id 1 must lie in .*, got {token}"):
            vocabulary.unflatten([flat[0], token, *flat[2:]])


def test_prefix_only_where_the_layout_decodes_it(vocabulary):
    prefix = Tokens(torch.zeros(1, 4, 2, dtype=torch.int64), torch.tensor([4]), vocabulary.layout)
    with pytest.raises(ValueError, match="must have 6 positions, got 4"):
        vocabulary.flatten(prefix)
    nested = replace(vocabulary, layout=replace(vocabulary.layout, prefix_decodable=True))
    flat = nested.flatten(replace(prefix, layout=nested.layout))
    assert nested.unflatten(flat).lengths.tolist() == [4]
    with pytest.raises(ValueError, match="must have 6 positions, got 4"):
        vocabulary.unflatten(flat)
    with pytest.raises(ValueError, match="must have 1 to 6 positions, got 0"):
        nested.unflatten([])
    with pytest.raises(ValueError, match="must have 1 to 6 positions, got 7"):
        nested.unflatten(flat[:2] * 7)
    with pytest.raises(ValueError, match="multiple of 2 streams, got 3"):
        nested.unflatten(flat[:3])


def test_refuses_other_layouts_batches_and_too_few_pieces(vocabulary):
    row = Tokens(torch.zeros(1, 6, 2, dtype=torch.int64), torch.tensor([6]), vocabulary.layout)
    with pytest.raises(ValueError, match="row must be one picture of .*, got 2 of"):
        vocabulary.flatten(Tokens.cat([row, row]))
    with pytest.raises(ValueError, match="row must be one picture of"):
        vocabulary.flatten(replace(row, layout=replace(row.layout, grid=(3, 2))))
    with pytest.raises(ValueError, match="num_text must be at least 4, got 3"):
        replace(vocabulary, num_text=3)
