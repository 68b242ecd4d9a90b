"""Pictures of several sizes in one vocabulary: everything that is undone comes back, and nothing else is let in."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.data.loading import PackedLoader
from rebus.data.rendering import canonical, parse, render
from rebus.data.samples import Message, Picture, Sample
from rebus.model.grammar import Grammar, PictureSpan, TextSpan
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens
from rebus.tokenizers.vocabulary import Vocabulary

GRIDS = ((2, 3), (2, 8), (3, 2), (4, 4))
"""Each has as many cells as another."""
STREAMS = (Stream("coarse", 7), Stream("fine", 11))
LAYOUT = CodeLayout("grid", 16, STREAMS, grids=GRIDS)
VOCABULARY = Vocabulary(23, LAYOUT)
ONE, TWO, THREE, FOUR, EIGHT = (VOCABULARY.size_range[0] + side - 1 for side in (1, 2, 3, 4, 8))


def tokens_of(grid, number=0, layout=LAYOUT, length=None):
    length = length or grid[0] * grid[1]
    ids = [[(number + 3 * place) % stream.size for stream in layout.streams] for place in range(length)]
    return Tokens(torch.tensor([ids]), torch.tensor([length]), layout, (grid,))


def picture(grid, number=0, vocabulary=VOCABULARY):
    return [
        vocabulary.begin_picture,
        *vocabulary.flatten(tokens_of(grid, number, vocabulary.layout)),
        vocabulary.end_picture,
    ]


def draw_layout(data):
    side = st.integers(1, 5)
    grids = data.draw(st.lists(st.tuples(side, side), min_size=2, max_size=5, unique=True).map(sorted))
    sizes = data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=3))
    streams = tuple(Stream(f"stream{index}", size) for index, size in enumerate(sizes))
    largest = max(rows * columns for rows, columns in grids)
    return CodeLayout("grid", largest, streams, prefix_decodable=data.draw(st.booleans()), grids=tuple(grids))


@given(st.data())
def test_unflatten_inverts_flatten(data):
    layout = draw_layout(data)
    vocabulary, grid = Vocabulary(data.draw(st.integers(4, 50)), layout), data.draw(st.sampled_from(layout.grids))
    whole = grid[0] * grid[1]
    length = data.draw(st.integers(1, whole)) if layout.prefix_decodable else whole
    row = tokens_of(grid, data.draw(st.integers(0, 99)), layout, length)
    flat = vocabulary.flatten(row)
    assert [token - vocabulary.size_range[0] + 1 for token in flat[:2]] == list(grid)
    assert len(flat) == 2 + length * len(layout.streams) and min(flat[2:]) >= vocabulary.code_range(0)[0]
    again = vocabulary.unflatten(flat)
    assert torch.equal(again.ids, row.ids) and torch.equal(again.lengths, row.lengths) and again.grids == row.grids
    assert vocabulary.flatten(again) == flat
    assert len(flat) + 2 == vocabulary.picture_length(grid) or length < whole


@given(st.data())
def test_ranges_are_disjoint_and_cover_every_id_and_no_old_one_moves(data):
    layout = draw_layout(data)
    vocabulary = Vocabulary(data.draw(st.integers(4, 50)), layout)
    first, stop = vocabulary.size_range
    codes = [vocabulary.code_range(stream) for stream in range(len(layout.streams))]
    parts = [vocabulary.text_range, (vocabulary.num_text, first), (first, stop), *codes]
    assert [token for start, end in parts for token in range(start, end)] == list(range(vocabulary.size))
    assert stop - first == max(side for grid in layout.grids for side in grid)
    alike = Vocabulary(vocabulary.num_text, CodeLayout("sequence", 3, layout.streams))
    assert alike.control_range == (vocabulary.num_text, first) and alike.size_range == (first, first)
    names = vocabulary.names_beyond_text()
    assert len(set(names)) == len(names) == vocabulary.size - vocabulary.num_text
    assert names[:4] == list(alike.control_names) and names[4] == "<|size 1|>"


@given(st.lists(st.sampled_from(GRIDS), min_size=1, max_size=5))
def test_a_batch_keeps_the_size_of_each_picture(grids):
    batch = Tokens.cat([tokens_of(grid, number) for number, grid in enumerate(grids)]).to("cpu")
    assert batch.grids == tuple(grids)
    for number, grid in enumerate(grids):
        row = batch.row(number)
        assert row.grids == (grid,) and torch.equal(row.ids, tokens_of(grid, number).ids)
    assert batch.prefix(5).grids == batch.grids


def test_layouts_survive_json_and_those_of_one_size_look_as_they_always_did():
    assert CodeLayout.from_dict(json.loads(json.dumps(LAYOUT.to_dict()))) == LAYOUT
    path = Path(__file__).parents[1] / "assets/mini/rebus.json"
    saved = json.loads(path.read_text())["vocabulary"]
    vocabulary = Vocabulary.from_dict(saved)
    assert vocabulary.to_dict() == saved and vocabulary.layout.grids == ()
    assert vocabulary.control_range == (2000, 2004) and vocabulary.code_range(0) == (2004, 6100)
    assert Vocabulary(5, CodeLayout("grid", 6, STREAMS, (2, 3))).flatten(
        Tokens(torch.zeros(1, 6, 2, dtype=torch.int64), torch.tensor([6]), CodeLayout("grid", 6, STREAMS, (2, 3)))
    )[:2] == [9, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grids": ((2, 3),)}, r"grids must be several, ascending, and grid None, got \(\(2, 3\),\) and None"),
        ({"grids": ((3, 2), (2, 3))}, "grids must be several, ascending"),
        ({"grids": ((2, 3), (2, 3))}, "grids must be several, ascending"),
        ({"grids": ((2, 3), (3, 2)), "grid": (2, 3)}, r"and grid None, got .* and \(2, 3\)"),
        ({"grids": ((2, 3), (2, 4))}, "grids must be .* with 6 cells at most"),
        ({"grids": ((1, 1), (1, 2))}, "grids must be .* with 6 cells at most"),
        ({"grids": ((-2, -3), (2, 3))}, "grids must be .* with 6 cells at most"),
        ({"grids": ((2, 3), (3, 2)), "kind": "sequence"}, "grid must be None for a sequence"),
    ],
)
def test_layout_refuses_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        CodeLayout(**{"kind": "grid", "num_positions": 6, "streams": STREAMS, **arguments})


def test_tokens_refuse_sizes_that_do_not_fit():
    ids, lengths = torch.zeros(1, 8, 2, dtype=torch.int64), torch.tensor([8])
    for grids, message in [
        ((), "grids must be 1 for 1 pictures, got 0"),
        (((2, 8), (2, 8)), "grids must be 1 for 1 pictures, got 2"),
        (((2, 3),), r"a picture of size \(2, 3\) must have at most 6 positions, got 8"),
        (((8, 2),), r"size of a picture must be one of \(2, 3\), \(2, 8\), \(3, 2\), \(4, 4\), got \(8, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            Tokens(ids, lengths, LAYOUT, grids)
    with pytest.raises(ValueError, match="grids must be 0 for 1 pictures, got 1"):
        Tokens(ids, lengths, CodeLayout("sequence", 8, STREAMS), ((2, 3),))
    with pytest.raises(ValueError, match="size of a picture must be None, got"):
        Vocabulary(9, CodeLayout("sequence", 8, STREAMS)).picture_length((2, 3))


def test_unflatten_refuses_other_sizes_and_lengths():
    flat = picture((2, 3))[1:-1]
    for broken, message in [
        (flat[2:], "a picture must begin with the tokens of one of"),
        ([TWO, TWO, *flat[2:]], "a picture must begin with the tokens of one of"),
        ([TWO], "a picture must begin with the tokens of one of"),
        ([FOUR, FOUR, *flat[2:]], "a picture must have 16 positions, got 6"),
        (flat[:-2], "a picture must have 6 positions, got 5"),
        (flat[:-1], "multiple of 2 streams, got 11"),
    ]:
        with pytest.raises(ValueError, match=message):
            VOCABULARY.unflatten(broken)
    with pytest.raises(ValueError, match="a picture must have 16 positions, got 6"):
        VOCABULARY.flatten(tokens_of((4, 4), length=6))
    assert VOCABULARY.unflatten(flat[:-2], whole=False).lengths.tolist() == [5]


def is_text_and_whole_pictures(ids):
    """The grammar, as it is defined rather than as it is built."""
    place = 0
    while place < len(ids):
        if ids[place] != VOCABULARY.begin_picture:
            if ids[place] not in {1, 2, *range(4, 23), VOCABULARY.user, VOCABULARY.assistant}:
                return False
            place += 1
            continue
        wholes = [place + VOCABULARY.picture_length(grid) for grid in GRIDS if _is_picture(ids[place:], grid)]
        if not wholes:
            return False
        (place,) = wholes
    return True


def _is_picture(ids, grid):
    num_codes = 2 * grid[0] * grid[1]
    codes, starts = ids[3 : 3 + num_codes], (VOCABULARY.code_range(0), VOCABULARY.code_range(1))
    return (
        ids[1:3] == [ONE + side - 1 for side in grid]
        and len(codes) == num_codes
        and all(token in range(*starts[index % 2]) for index, token in enumerate(codes))
        and ids[3 + num_codes : 4 + num_codes] == [VOCABULARY.end_picture]
    )


SPEECH = st.lists(st.sampled_from([1, 2, 4, 9, 22, VOCABULARY.user, VOCABULARY.assistant]), max_size=2)
PART = st.one_of(SPEECH, st.tuples(st.sampled_from(GRIDS), st.integers(0, 9)))
ANY_ID = st.integers(-1, VOCABULARY.size)
SIZE_ID = st.integers(*VOCABULARY.size_range)


@given(parts=st.lists(PART, max_size=3), data=st.data())
def test_the_grammar_accepts_text_and_whole_pictures_and_nothing_else(parts, data):
    ids = [token for part in parts for token in (picture(*part) if isinstance(part, tuple) else part)]
    assert is_text_and_whole_pictures(ids)
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(ids)))
        kind = data.draw(st.sampled_from(["insert", "replace", "delete", "cut", "size"]))
        sizes = [index for index, token in enumerate(ids) if token in range(*VOCABULARY.size_range)]
        if kind == "size" and sizes:
            ids[data.draw(st.sampled_from(sizes))] = data.draw(SIZE_ID)
        elif kind == "cut":
            ids = ids[:place]
        elif kind in ("insert", "replace", "delete"):
            ids[place : place + (kind != "insert")] = [] if kind == "delete" else [data.draw(ANY_ID)]
    if not is_text_and_whole_pictures(ids):
        with pytest.raises(ValueError, match="must"):
            Grammar(VOCABULARY).spans(ids)
        return
    spans = Grammar(VOCABULARY).spans(ids)
    assert [index for span in spans for index in range(span.start, span.stop)] == list(range(len(ids)))
    modality = Grammar(VOCABULARY).modality(ids)
    assert modality == [int(token >= VOCABULARY.control_range[1]) for token in ids]
    for span in spans:
        if isinstance(span, PictureSpan):
            assert VOCABULARY.flatten(VOCABULARY.unflatten(ids[span.content])) == ids[span.content]
            assert ids[span.codes] == ids[span.content][2:] and modality[span.codes] == [1] * len(ids[span.codes])


def every_state(grammar):
    """All states, by trying one id of every legal range in each."""
    found, new = {grammar.start()}, [grammar.start()]
    while new:
        state = new.pop()
        following = {grammar.advance(state, start) for start, _ in grammar.legal(state)} - found
        found |= following
        new += following
    return found


def test_advance_accepts_exactly_what_is_legal():
    grammar = Grammar(VOCABULARY)
    states = every_state(grammar)
    assert states == every_state(Grammar(VOCABULARY))
    assert len(states) == 2 + 3 + sum(2 * rows * columns + 1 for rows, columns in GRIDS)  # outside, begun, rows said
    for state in states:
        accepted = set()
        for token in range(-1, VOCABULARY.size + 1):
            try:
                grammar.advance(state, token)
            except ValueError:
                continue
            accepted.add(token)
        legal = {token for start, stop in grammar.legal(state) for token in range(start, stop)}
        also = set() if state.inside else {VOCABULARY.bos, VOCABULARY.user, VOCABULARY.assistant}
        assert accepted == legal | also
        whole = 2 * state.size[0] * state.size[1] if len(state.size) == 2 else 0
        assert grammar.num_picture_codes(state) == whole
        ranges = [VOCABULARY.code_range(index % 2) for index in range(state.num_codes, whole)]
        assert list(grammar.codes_to_come(state)) == ranges


def test_after_the_rows_only_columns_of_a_size_with_these_rows_are_legal():
    grammar = Grammar(VOCABULARY)
    begun = grammar.advance(grammar.start(), VOCABULARY.begin_picture)
    assert [start for start, _ in grammar.legal(begun)] == [TWO, THREE, FOUR]
    for rows, columns in ((TWO, [THREE, EIGHT]), (THREE, [TWO]), (FOUR, [FOUR])):
        assert grammar.legal(grammar.advance(begun, rows)) == tuple((token, token + 1) for token in columns)


def test_a_broken_picture_is_named():
    grammar, whole = Grammar(VOCABULARY), picture((2, 3))
    for ids, message in [
        (whole[:1], f"rows of a picture must be one of 2 .id {TWO}., 3 .id {THREE}., 4 .id {FOUR}., got none"),
        ([whole[0], ONE], f"rows of a picture must be one of .*, got id {ONE}"),
        ([whole[0], *whole[3:]], "rows of a picture must be one of"),
        (whole[:2], f"columns of a picture of 2 rows must be one of 3 .id {THREE}., 8 .id {EIGHT}., got none"),
        ([*whole[:2], FOUR], f"columns of a picture of 2 rows must be one of .*, got id {FOUR}"),
        (whole[:9], "picture must have 12 codes, got 6"),
        ([*whole[:9], TWO], "picture must have 12 codes, got 6"),
        (whole[:-1], "picture must have 12 codes, got all but no end_picture"),
        ([whole[0], TWO, EIGHT, *whole[3:]], "picture must have 32 codes, got 12"),
        ([*picture((2, 8))[:1], TWO, THREE, *picture((2, 8))[3:]], "id after 12 of 12 codes must lie in"),
        ([9, TWO], f"outside a picture, an id must be text, user, assistant or begin_picture, got {TWO}"),
    ]:
        with pytest.raises(ValueError, match=message):
            grammar.spans(ids)


TRAPS = ["<|size 2|>", "<|picture|>", "\u2581", "", " "]
TEXT = st.one_of(st.sampled_from([*TRAPS, "a cat"]), st.text(max_size=4))
SAID = st.lists(st.one_of(TEXT, st.tuples(st.sampled_from(GRIDS), st.integers(0, 6))), max_size=4)
CHAT = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), SAID), min_size=1, max_size=3)


def build(conversation):
    return Sample(
        tuple(
            Message(role, tuple(one if isinstance(one, str) else Picture(tokens=tokens_of(*one)) for one in said))
            for role, said in conversation
        )
    )


def plain(sample):
    return [
        (
            one.role,
            [part if isinstance(part, str) else (part.tokens.grids, part.tokens.ids.tolist()) for part in one.parts],
        )
        for one in sample.messages
    ]


@given(st.one_of(SAID.map(lambda said: [("document", said)]), CHAT))
def test_parse_inverts_render_and_text_is_never_a_size(text_tokenizer, conversation):
    vocabulary, sample = Vocabulary(text_tokenizer.num_pieces, LAYOUT), build(conversation)
    rendered = render(sample, text_tokenizer, vocabulary)
    parsed = parse(rendered.ids, text_tokenizer, vocabulary)
    assert plain(parsed) == plain(canonical(sample))
    assert render(parsed, text_tokenizer, vocabulary) == rendered
    pictures = [part for message in sample.messages for part in message.parts if isinstance(part, Picture)]
    said = [token for token in rendered.ids if token in range(*vocabulary.size_range)]
    assert said == [token for one in pictures for token in vocabulary.size_ids(one.tokens.grids[0])]
    assert rendered.modality == [int(token >= vocabulary.control_range[1]) for token in rendered.ids]


def test_sizes_of_what_the_assistant_draws_are_targets_and_those_it_is_shown_are_not(text_tokenizer):
    vocabulary = Vocabulary(text_tokenizer.num_pieces, LAYOUT)
    shown, drawn = (picture(grid, 1, vocabulary) for grid in ((3, 2), (2, 8)))
    rendered = render(build([("user", [((3, 2), 1)]), ("assistant", [((2, 8), 1)])]), text_tokenizer, vocabulary)
    asked = [vocabulary.bos, vocabulary.user, *shown, vocabulary.eos, vocabulary.assistant]
    assert rendered.ids == [*asked, *drawn, vocabulary.eos]
    assert rendered.targets == [*[-100] * len(asked), *drawn, vocabulary.eos]
    broken = [*asked, drawn[0], vocabulary.size_range[0], *drawn[2:], vocabulary.eos]
    with pytest.raises(ValueError, match="rows of a picture must be one of"):
        parse(broken, text_tokenizer, vocabulary)
    nested = CodeLayout("grid", 16, STREAMS, prefix_decodable=True, grids=GRIDS)
    prefix = Sample((Message("document", (Picture(tokens=tokens_of((4, 4), layout=nested, length=6)),)),))
    with pytest.raises(ValueError, match="picture must have 16 positions, got 6"):
        render(prefix, text_tokenizer, Vocabulary(text_tokenizer.num_pieces, nested))


def test_a_whole_picture_is_one_span():
    first, second = picture((2, 8)), picture((4, 4))
    middle, stop = 1 + len(first), 1 + len(first) + len(second)
    spans = Grammar(VOCABULARY).spans([9, *first, *second, 8])
    assert spans == [TextSpan(0, 1), PictureSpan(1, middle, 2), PictureSpan(middle, stop, 2), TextSpan(stop, stop + 1)]


def test_a_loader_that_encodes_pictures_refuses_several_sizes(text_tokenizer):
    with pytest.raises(ValueError, match="pictures of a loader must all have one size, got the sizes"):
        PackedLoader(
            make_sample=lambda rng: build([("document", ["a"])]),
            encode=lambda images: tokens_of((4, 4)),
            text_tokenizer=text_tokenizer,
            vocabulary=Vocabulary(text_tokenizer.num_pieces, LAYOUT),
            rows=1,
            length=9,
            seed=0,
        )
