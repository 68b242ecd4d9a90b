"""Rows of one batch in text and in pictures of several sizes: each as alone, and all as ``transformers`` has it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rebus.data.packing import pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered
from rebus.model.cached_rows import CachedRows
from rebus.model.continuation import Continuation, Decoding, Request, Row
from rebus.model.engine import Engine
from rebus.model.grammar import Grammar, PictureSpan
from rebus.model.guidance import Guidance
from rebus.model.language_model import LanguageModelConfig, language_batch, loss
from rebus.model.sampling import Sampling
from rebus.model.token_reduction import FirstCodes, prompt_row
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

GRIDS = ((2, 3), (2, 8), (3, 2), (4, 4))
LAYOUT = CodeLayout("grid", 16, (Stream("coarse", 7), Stream("fine", 11)), grids=GRIDS)
VOCABULARY = Vocabulary(23, LAYOUT)
GRAMMAR = Grammar(VOCABULARY)
CONFIG = LanguageModelConfig(dim=48, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=61, max_positions=128)


def picture(grid, start=0):
    num_codes = VOCABULARY.picture_length(grid) - 4
    codes = [VOCABULARY.code_range(index % 2)[0] + (index // 2 + start) % 7 for index in range(num_codes)]
    return [VOCABULARY.begin_picture, *VOCABULARY.size_ids(grid), *codes, VOCABULARY.end_picture]


ASKED = [
    [VOCABULARY.bos, VOCABULARY.user, 5, 6, 7, VOCABULARY.eos, VOCABULARY.assistant],
    [VOCABULARY.bos, *[8, 9, 4] * 6],
    [VOCABULARY.bos, VOCABULARY.user, *picture((3, 2)), 9],
    [VOCABULARY.bos, 7, 7],
]
OTHER = [[VOCABULARY.bos], [VOCABULARY.bos, *[9] * 22], [VOCABULARY.bos, 4, *picture((2, 3))], [5, 5]]
GUIDANCE = Guidance(scale=2.5, start=0.2, stop=0.7)
DECODING = Decoding(text=Sampling(3.0), guidance=GUIDANCE)
GREEDY = Decoding(text=Sampling(0.0), picture=Sampling(0.0), guidance=GUIDANCE)


def build(vocabulary):
    model = CONFIG.build(vocabulary, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    model.lm_head.weight.data[vocabulary.begin_picture] = model.lm_head.weight.data[4:23].mean(0) * 25  # likes to draw
    return model


@pytest.fixture(scope="module")
def model():
    return build(VOCABULARY)


@pytest.fixture(scope="module", params=[False, True], ids=["torch", "native"])
def engine(model, request):
    made = Engine(model, VOCABULARY, native=request.param)
    if request.param and made.body.native is None:
        pytest.skip("no C++ compiler")
    return made


@pytest.fixture(scope="module")
def any_engine(model):
    return Engine(model, VOCABULARY)


def asked(row, size=None, **changes):
    settings = {"max_text_tokens": 9, "num_pictures": 1, "start_picture": size is not None, "seed": 40 + row, **changes}
    return Request(prompt=ASKED[row], others=(OTHER[row],), picture_size=size, **settings)


MIXED = [
    asked(0, num_pictures=0, max_text_tokens=17),  # in text
    asked(1, (2, 3)),
    asked(2, (3, 2)),
    asked(3, (4, 4)),
    asked(1, start_picture=True, seed=3),  # as large as the model likes
    asked(0, num_pictures=2, seed=5),  # when and as large as the model likes
]


def sizes(continuation):
    spans = [span for span in GRAMMAR.spans(continuation.ids) if isinstance(span, PictureSpan)]
    return [VOCABULARY.unflatten(continuation.ids[span.content]).grids[0] for span in spans]


def test_a_row_is_the_same_alone_and_among_text_and_pictures_of_other_sizes(engine):
    together = engine.generate(MIXED, DECODING)
    assert together == [engine.generate([one], DECODING)[0] for one in MIXED]
    assert [sizes(one) for one in together[:4]] == [[], [(2, 3)], [(3, 2)], [(4, 4)]]
    assert sizes(together[4]) and sizes(together[5])


def expected_logits(model, request, continuation):
    """Logits after each id, of whole passes of ``transformers``, and guided as the papers have it."""
    each, ids = [], continuation.ids
    for prompt in (request.prompt, *request.others):
        each.append(model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1])
    rows, state = [], GRAMMAR.start()
    for index, token in enumerate(ids):
        rows.append(each[0][index])
        if len(state.size) == 2:
            share = state.num_codes / (2 * state.size[0] * state.size[1])
            if GUIDANCE.start <= share < GUIDANCE.stop:
                rows[-1] = each[1][index] + GUIDANCE.scale * (each[0][index] - each[1][index])
        state = GRAMMAR.advance(state, token)
    return rows


def test_logits_are_those_of_whole_passes_of_transformers(model, engine, monkeypatch):
    seen, rows = [], []

    def extend(given, hidden, decoding):
        rows[:] = given
        Engine._extend(engine, given, hidden, decoding)

    def logits(hidden, indices, num_rows, ranges, weights):
        result = Engine.logits(engine, hidden, indices, num_rows, ranges, weights)
        seen.extend((index, len(rows[index].ids), ranges, row) for index, row in zip(indices, result, strict=True))
        return result

    monkeypatch.setattr(engine, "_extend", extend)
    monkeypatch.setattr(engine, "logits", logits)
    monkeypatch.setattr(engine.spans, "draw", lambda *_: False)
    done = engine.generate(MIXED, DECODING)
    expected = [expected_logits(model, *pair) for pair in zip(MIXED, done, strict=True)]
    scored = {VOCABULARY.size_range: 0, VOCABULARY.code_range(0): 0, VOCABULARY.text_range: 0}
    for index, place, ranges, row in seen:
        for start, stop in ranges:
            got = row[start - ranges[0][0] : stop - ranges[0][0]]
            torch.testing.assert_close(got, expected[index][place][start:stop], rtol=0, atol=1e-5)
        for first, beyond in scored:
            scored[first, beyond] += first <= ranges[0][0] < beyond
    assert all(scored.values())


def test_greedy_decoding_is_that_of_transformers(model, engine):
    """Row by row and all together, by whatever way is fastest."""
    batches = [MIXED, [asked(0, (4, 4)), asked(3, (4, 4))], [asked(2, (2, 8))]]
    for requests in batches:
        for request, done in zip(requests, engine.generate(requests, GREEDY), strict=True):
            state, left = GRAMMAR.start(), request.num_pictures
            for token, logits in zip(done.ids, expected_logits(model, request, done), strict=True):
                legal = list(GRAMMAR.legal(state))
                if not state.inside and not left:
                    legal.remove((VOCABULARY.begin_picture, VOCABULARY.begin_picture + 1))
                if not state.inside and request.start_picture and left == request.num_pictures:
                    legal = [(VOCABULARY.begin_picture, VOCABULARY.begin_picture + 1)]
                if request.picture_size and state.inside and len(state.size) < 2:
                    forced = VOCABULARY.size_ids(request.picture_size)[len(state.size)]
                    legal = [(forced, forced + 1)]
                ids = [one for start, stop in legal for one in range(start, stop)]
                assert token == ids[int(logits[ids].argmax())]
                left -= token == VOCABULARY.begin_picture
                state = GRAMMAR.advance(state, token)


def test_codes_are_drawn_at_once_only_where_all_rows_are_at_the_same_one_of_the_same_size(engine, monkeypatch):
    drawn, old = [], CachedRows.draw
    monkeypatch.setattr(
        CachedRows, "draw", lambda rows, ranges, *rest: drawn.append(len(ranges)) or old(rows, ranges, *rest)
    )
    alike, unlike = (
        [asked(0, (4, 4), max_text_tokens=0), asked(3, grid, max_text_tokens=0)] for grid in ((4, 4), (2, 8))
    )
    at_once = engine.generate(alike, DECODING)
    assert drawn == ([32] if engine.body.native else [])
    engine.generate(unlike, DECODING)  # as many codes, but of another size
    assert len(drawn) == (engine.body.native is not None)
    monkeypatch.setattr(engine.spans, "draw", lambda *_: False)
    assert engine.generate(alike, DECODING) == at_once


def test_all_pictures_of_a_row_have_the_size_that_was_asked_for(any_engine):
    free = [
        size for one in any_engine.generate([asked(0, seed=seed) for seed in range(3)], DECODING) for size in sizes(one)
    ]
    assert len(set(free)) > 1
    two = asked(3, (2, 8), start_picture=False, num_pictures=2, max_text_tokens=40)
    assert sizes(any_engine.generate([two, replace(two, start_picture=True)], DECODING)[1]) == [(2, 8)] * 2
    assert sizes(any_engine.generate([two], DECODING)[0])[:1] == [(2, 8)]


@pytest.mark.parametrize(("size", "length"), [((2, 3), 16), ((3, 2), 16), ((4, 4), 36), (None, 36)])
def test_a_picture_is_begun_only_where_the_largest_that_may_come_fits(any_engine, size, length):
    begin = (VOCABULARY.begin_picture, VOCABULARY.begin_picture + 1)
    free = Request(prompt=[1], max_text_tokens=9, num_pictures=1, picture_size=size)
    assert (
        begin in Row(0, GRAMMAR, free, room=length).legal() and begin not in Row(0, GRAMMAR, free, length - 1).legal()
    )
    row = Row(0, GRAMMAR, replace(free, max_text_tokens=0, start_picture=True), room=length)
    assert len(row.ids) + row.most_to_come() == length
    for most, given in ((128 - length, 129 - length), (128 - length, 128)):
        with pytest.raises(ValueError, match=f"a prompt must have 1 to {most} ids, got {given}"):
            any_engine.generate([replace(free, prompt=[4] * given, start_picture=True)], Decoding())
    (drawn,) = any_engine.generate([replace(free, prompt=[4] * (128 - length), start_picture=True)], Decoding())
    assert drawn.ended == "limit" and sizes(drawn)


def test_a_stream_tells_sizes(any_engine):
    events = list(any_engine.stream(MIXED, DECODING, preview_every=5))
    expected = any_engine.generate(MIXED, DECODING)
    for row, done in enumerate(expected):
        own = [event for event in events if event.row == row]
        assert [token for event in own if event.kind in ("text", "picture") for token in event.ids] == done.ids
        drawn = [VOCABULARY.unflatten(event.ids[1:-1]).grids[0] for event in own if event.kind == "picture"]
        assert drawn == sizes(done)
        for index, event in enumerate(own):
            if event.kind == "picture_preview":
                whole = next(later.ids for later in own[index:] if later.kind == "picture")
                assert event.ids == whole[1 : 1 + len(event.ids)] and (len(event.ids) - 2) % 5 == 0


def test_sizes_that_no_picture_has_are_refused_before_any_work(any_engine, monkeypatch):
    monkeypatch.setattr(CachedRows, "read_embeddings", None)
    message = r"size of a picture must be one of \(2, 3\), \(2, 8\), \(3, 2\), \(4, 4\), got \(8, 2\)"
    with pytest.raises(ValueError, match=message):
        any_engine.generate([asked(0), asked(1, (8, 2))], DECODING)
    with pytest.raises(ValueError, match=message):
        any_engine.stream([asked(1, (8, 2), start_picture=False)], DECODING)


def test_one_size_may_be_asked_for_by_name_and_no_other():
    one = Vocabulary(23, CodeLayout("grid", 6, LAYOUT.streams, (2, 3)))
    engine = Engine(build(one), one)
    request = Request(prompt=[1, 5], max_text_tokens=3, num_pictures=1, start_picture=True)
    plain = engine.generate([request], Decoding())
    assert engine.generate([replace(request, picture_size=(2, 3))], Decoding()) == plain
    with pytest.raises(ValueError, match=r"size of a picture must be one of \(2, 3\), got \(3, 2\)"):
        engine.generate([replace(request, picture_size=(3, 2))], Decoding())


@pytest.mark.parametrize("size", [(2, 3), (4, 4), None])
def test_guessing_ahead_draws_the_same_likeliest_codes(size):
    vocabulary = Vocabulary(23, CodeLayout("grid", 16, (Stream("code", 7),), grids=GRIDS))
    engine = Engine(build(vocabulary), vocabulary)
    request = Request(
        prompt=[1, 5, 6], others=((1,),), max_text_tokens=9, num_pictures=2, start_picture=True, picture_size=size
    )
    expected = engine.generate([request], GREEDY)
    assert engine.generate([request], replace(GREEDY, guesses=4)) == expected


def test_a_row_that_fails_in_a_picture_leaves_none_of_it(model, any_engine):
    broken = build(VOCABULARY)
    broken.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untied
    broken.model.embed_tokens.weight.data[22] = float("nan")
    settings = {"max_text_tokens": 0, "num_pictures": 1, "start_picture": True, "picture_size": (2, 3)}
    wrong, right = (Request(prompt=[first], others=((4,),), **settings) for first in (22, 5))
    larger = replace(right, picture_size=(4, 4))
    done = Engine(broken, VOCABULARY).generate([right, wrong, larger], DECODING)
    assert done[1] == Continuation([], "not_a_number")
    assert [done[0], done[2]] == any_engine.generate([right, larger], DECODING)


def test_reduced_pictures_keep_their_size_tokens():
    ids = [VOCABULARY.bos, VOCABULARY.user, *picture((2, 8)), 5, *picture((2, 3)), VOCABULARY.eos]
    embeddings = torch.arange(VOCABULARY.size)[:, None].float()
    row = prompt_row(ids, [], embeddings, GRAMMAR, FirstCodes(num_codes=3))
    shown = [[*whole[:6], VOCABULARY.end_picture] for whole in (picture((2, 8)), picture((2, 3)))]
    assert row.embeddings[:, 0].tolist() == [VOCABULARY.bos, VOCABULARY.user, *shown[0], 5, *shown[1], VOCABULARY.eos]


def test_sizes_are_scored_with_text_and_control(model):
    """The loss is that of a plain pass, each id among those of its part of the head."""
    drawn = [*picture((2, 3)), *picture((4, 4), 3), VOCABULARY.eos]
    ids = [VOCABULARY.bos, VOCABULARY.user, 9, *picture((3, 2)), VOCABULARY.eos, VOCABULARY.assistant, *drawn]
    targets = [*[NOT_TRAINED] * (len(ids) - len(drawn)), *drawn]
    packed = pack_row(iter([Rendered(ids, targets, GRAMMAR.modality(ids))]), 100, VOCABULARY.pad)
    assert packed.modality.sum() == 12 + 12 + 32
    batch = language_batch(packed, VOCABULARY)
    assert [len(head.places) for head in batch.heads] == [2 * 4 + 1, 6 + 16, 6 + 16]
    said = [token for token in batch.heads[0].ids.tolist() if token in range(*VOCABULARY.size_range)]
    assert said == [*VOCABULARY.size_ids((2, 3)), *VOCABULARY.size_ids((4, 4))]
    logits, parts = model(torch.tensor([ids])).logits[0], [VOCABULARY.code_range(0), VOCABULARY.code_range(1)]
    expected = []
    for place in range(len(ids) - len(drawn), len(ids)):
        inside = [part for part in parts if part[0] <= ids[place] < part[1]]
        start, stop = inside[0] if inside else (0, VOCABULARY.control_range[1])
        expected.append(F.cross_entropy(logits[place - 1, start:stop], torch.tensor(ids[place] - start)))
    torch.testing.assert_close(loss(model, batch)[0], torch.stack(expected).mean(), rtol=0, atol=1e-5)
