from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.model.cached_rows import CachedRows
from rebus.model.continuation import Continuation, Decoding, Request
from rebus.model.engine import Engine
from rebus.model.grammar import Grammar
from rebus.model.guidance import Guidance
from rebus.model.language_model import LanguageModelConfig
from rebus.model.sampling import Sampling
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(23, CodeLayout("grid", 6, (Stream("coarse", 7), Stream("fine", 11)), (2, 3)))
PICTURE = [
    VOCABULARY.begin_picture,
    *(VOCABULARY.code_range(index % 2)[0] + index // 2 for index in range(12)),
    VOCABULARY.end_picture,
]
ASKED = [
    [VOCABULARY.bos, VOCABULARY.user, 5, 6, 7, VOCABULARY.eos, VOCABULARY.assistant],
    [VOCABULARY.bos, *[8, 9, 4] * 6],
    [VOCABULARY.bos, VOCABULARY.user, *PICTURE, 9],
]
OTHER = [[VOCABULARY.bos], [VOCABULARY.bos, *[9] * 22], [VOCABULARY.bos, 4, *PICTURE]]
"""Shorter, longer, and with a picture."""
FREE, PLAIN = Sampling(temperature=3.0), Sampling()
GUIDED, UNGUIDED = Guidance(scale=2.5), Guidance()
DECODING = Decoding(text=FREE, guidance=GUIDED)
GREEDY = Decoding(text=Sampling(0.0), picture=Sampling(0.0))


@pytest.fixture(scope="module")
def model():
    config = LanguageModelConfig(dim=48, num_layers=3, num_heads=6, num_kv_heads=2, ffn_dim=61, max_positions=96)
    model = config.build(VOCABULARY, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    begin = VOCABULARY.begin_picture
    model.lm_head.weight.data[begin] = model.lm_head.weight.data[4:23].mean(0) * 6  # a model that likes to draw
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["torch", "native"])
def engine(model, request):
    made = Engine(model, VOCABULARY, native=request.param)
    if request.param and made.body.native is None:
        pytest.skip("no C++ compiler")
    return made


def requests(rows, **changes):
    settings = {"max_text_tokens": 13, "num_pictures": 2, **changes}
    seeds = settings.pop("seeds", [100 + row for row in rows])
    others = settings.pop("others", [(OTHER[row],) for row in rows])
    pairs = zip(rows, others, seeds, strict=True)
    return [Request(prompt=ASKED[row], others=other, seed=seed, **settings) for row, other, seed in pairs]


def generate(engine, rows, *, guidance=GUIDED, text=FREE, picture=PLAIN, **changes):
    done = engine.generate(requests(rows, **changes), Decoding(guidance=guidance, text=text, picture=picture))
    for row in done:
        assert row.ended == ("eos" if row.ids and row.ids[-1] == VOCABULARY.eos else "limit")
    return [row.ids for row in done]


BRANCHES = {
    "none": UNGUIDED,
    "one": GUIDED,
    "two": Guidance(scale=2.5, picture_scale=1.5),
    "some codes": Guidance(scale=3.0, start=0.3, stop=0.8),
}
OTHERS = {row: (OTHER[row], OTHER[(row + 1) % 3]) for row in range(3)}


@settings(max_examples=12)
@given(
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    kind=st.sampled_from(sorted(BRANCHES)),
    data=st.data(),
)
def test_logits_are_those_of_whole_passes_of_transformers(model, engine, rows, kind, data):
    guidance = BRANCHES[kind]
    asked = [
        Request(
            prompt=ASKED[row],
            others=OTHERS[row][: guidance.num_others],
            max_text_tokens=data.draw(st.integers(0, 9)),
            num_pictures=data.draw(st.integers(1, 2)),
            start_picture=data.draw(st.booleans()),
            seed=data.draw(st.integers(0, 99)),
        )
        for row in rows
    ]
    done, seen = spied(engine, asked, guidance)
    num_read = [int(one.start_picture) for one in asked]
    for index, ranges, logits in seen:
        ids = done[index].ids
        num_read[index] += ids[num_read[index]] == VOCABULARY.end_picture  # never scored
        so_far = ids[: num_read[index]]
        assert ranges[0][0] <= ids[num_read[index]] < ranges[-1][1]
        num_read[index] += 1
        prompts = (asked[index].prompt, *asked[index].others)
        each = [model(torch.tensor([[*prompt, *so_far]])).logits[0, -1] for prompt in prompts]
        expected = _guided(guidance, each, so_far)
        for start, stop in ranges:
            torch.testing.assert_close(
                logits[start - ranges[0][0] : stop - ranges[0][0]], expected[start:stop], rtol=0, atol=1e-5
            )


def spied(engine, asked, guidance):
    """Returns the continuations, drawn code by code, and all logits on the way."""
    seen = []

    def logits(hidden, indices, num_rows, ranges, weights):
        result = Engine.logits(engine, hidden, indices, num_rows, ranges, weights)
        seen.extend((index, ranges, row) for index, row in zip(indices, result, strict=True))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "logits", logits)
        patch.setattr(engine.spans, "draw", lambda *_: False)
        return engine.generate(asked, Decoding(guidance=guidance, text=FREE)), seen


def _guided(guidance, each, so_far):
    """The formulas as the papers have them."""
    code = so_far[::-1].index(VOCABULARY.begin_picture) if VOCABULARY.begin_picture in so_far else 99
    if VOCABULARY.end_picture in so_far[-code - 1 :] or not guidance.start * 12 <= code < guidance.stop * 12:
        return each[0]
    if len(each) == 3:
        return each[2] + guidance.picture_scale * (each[1] - each[2]) + guidance.scale * (each[0] - each[1])
    return each[1] + guidance.scale * (each[0] - each[1]) if len(each) == 2 else each[0]


def test_a_row_is_the_same_alone_and_in_a_batch(engine):
    together = generate(engine, [2, 0, 1, 0], seeds=[102, 100, 101, 9])
    assert together[:3] == [generate(engine, [row])[0] for row in (2, 0, 1)]
    assert together[3] != together[1]
    assert any(VOCABULARY.begin_picture in row for row in together)


@pytest.mark.parametrize(
    "picture",
    [Sampling(), Sampling(0.0), Sampling(0.8, top_k=3), Sampling(top_p=0.7), Sampling(1.3, min_p=0.2)],
    ids=str,
)
def test_codes_drawn_at_once_are_those_drawn_one_by_one(engine, monkeypatch, picture):
    settings = {"picture": picture, "start_picture": True, "num_pictures": 1}
    at_once = [generate(engine, rows, **settings) for rows in ([0, 1, 2], [2])]
    monkeypatch.setattr(engine.spans, "draw", lambda *_: False)
    assert at_once == [generate(engine, rows, **settings) for rows in ([0, 1, 2], [2])]
    assert at_once[0][2] == at_once[1][0]


def test_guidance_of_one_and_equal_branches_change_nothing(engine):
    plain = generate(engine, [0, 1], guidance=UNGUIDED, others=[(), ()], start_picture=True)
    assert generate(engine, [0, 1], others=[(ASKED[0],), (ASKED[1],)], start_picture=True) == plain
    assert generate(engine, [0, 1], start_picture=True) != plain


def test_what_is_generated_is_grammatical_and_ends_where_it_should(engine):
    for seed in range(6):
        rows = generate(engine, [0, 1, 2], seeds=[seed, seed + 50, seed + 90], max_text_tokens=9)
        for row in rows:
            spans = Grammar(VOCABULARY).spans(row)  # raises on a truncated picture
            text = [token for span in spans if not hasattr(span, "codes") for token in row[span.start : span.stop]]
            assert row.count(VOCABULARY.begin_picture) <= 2
            assert not {VOCABULARY.unk, VOCABULARY.bos, VOCABULARY.pad, VOCABULARY.user, VOCABULARY.assistant} & set(
                row
            )
            assert VOCABULARY.eos not in row[:-1]
            assert row[-1] == VOCABULARY.eos or len(text) == 9


def test_a_drawing_is_one_picture(engine):
    for row in generate(engine, [0, 1, 2], max_text_tokens=0, num_pictures=1, start_picture=True):
        assert len(row) == 14 and row[0] == VOCABULARY.begin_picture and row[-1] == VOCABULARY.end_picture


def test_no_picture_where_none_may_be(engine):
    assert all(VOCABULARY.begin_picture not in row for row in generate(engine, [0, 1, 2], num_pictures=0))


def test_a_picture_is_begun_only_where_it_fits(engine):
    prompt = [VOCABULARY.bos, *[4] * 69]
    for seed in range(4):
        asked = [Request(prompt=one, max_text_tokens=60, num_pictures=9, seed=seed) for one in (prompt, ASKED[0])]
        long, _ = engine.generate(asked, Decoding(text=FREE))
        Grammar(VOCABULARY).spans(long.ids)
        assert long.ended == "eos" or len(prompt) + len(long.ids) == 96


def test_greedy_decoding_is_that_of_transformers(model, engine):
    prompt = torch.tensor([ASKED[1]])
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        suppress_tokens=[0, 1, 3, *range(VOCABULARY.num_text, VOCABULARY.size)],
    )
    asked = Request(prompt=ASKED[1], max_text_tokens=20, num_pictures=0)
    own = engine.generate([asked], GREEDY)
    assert own[0].ids == expected[0, len(ASKED[1]) :].tolist()


def test_log_likelihoods_are_those_of_one_whole_pass_of_transformers(model, engine):
    texts = [[9, 8, 7, VOCABULARY.eos], [5], [6, 6, 20]]
    own = engine.log_likelihoods(ASKED, texts)
    for prompt, text, got in zip(ASKED, texts, own, strict=True):
        logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1, : VOCABULARY.control_range[1]]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(text).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_likelihoods_of_codes_are_those_of_one_whole_pass_of_transformers(model, engine):
    ranges = [VOCABULARY.code_range(code % 2) for code in range(12)]
    codes = [[start + (5 * code + row) % (stop - start) for code, (start, stop) in enumerate(ranges)] for row in (0, 1)]
    prompts = [[*ASKED[row], VOCABULARY.begin_picture] for row in (0, 1)]
    own = engine.code_log_likelihoods(prompts, codes)
    for prompt, row, got in zip(prompts, codes, own, strict=True):
        logits = model(torch.tensor([[*prompt, *row]])).logits[0, len(prompt) - 1 : -1]
        for one, code, (start, stop), value in zip(logits, row, ranges, got, strict=True):
            expected = one[start:stop].log_softmax(-1)[code - start]
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
def test_a_picture_that_is_left_and_gone_on_with_is_that_drawn_at_once(engine, keep):
    changes = {"max_text_tokens": 0, "num_pictures": 1, "start_picture": True}
    at_once = [row.ids for row in engine.generate(requests([0, 1], **changes), DECODING)]
    begun = [(), ()]
    for stop in (1, 5, 12):
        asked = [
            replace(one, begun=codes, leave_at=stop)
            for one, codes in zip(requests([0, 1], **changes), begun, strict=True)
        ]
        left = engine.generate(asked, DECODING, keep=keep)
        begun = [row.ids[1:] for row in left]
        assert [(row.ids, row.ended) for row in left] == [(ids[: 1 + stop], "limit") for ids in at_once]
    other = replace(requests([0], **changes)[0], begun=begun[0][:7], seed=1)
    drawn = engine.generate([other], DECODING)[0].ids
    assert drawn[:8] == at_once[0][:8] and drawn[8:-1] != at_once[0][8:-1] and len(drawn) == 14


def test_bfloat16_draws_too(model):
    half = LanguageModelConfig(dim=48, num_layers=1, num_heads=6, num_kv_heads=6, ffn_dim=61, max_positions=96)
    engine = Engine(half.build(VOCABULARY, torch.Generator().manual_seed(0)).bfloat16(), VOCABULARY)
    assert len(generate(engine, [0, 1], max_text_tokens=0, num_pictures=1, start_picture=True)[1]) == 14


def test_a_repetition_penalty_is_that_of_transformers(model, engine):
    prompt = torch.tensor([ASKED[1]])
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=4.0,
        suppress_tokens=[0, 1, 3, *range(VOCABULARY.num_text, VOCABULARY.size)],
    )
    asked = Request(prompt=ASKED[1], max_text_tokens=20, num_pictures=0)
    penalized = Sampling(temperature=0.0, repetition_penalty=4.0)
    own = engine.generate([asked], Decoding(text=penalized))[0].ids
    assert own == expected[0, len(ASKED[1]) :].tolist()
    assert own != engine.generate([asked], GREEDY)[0].ids
    drawn = generate(engine, [0], picture=Sampling(0.0, repetition_penalty=50.0), start_picture=True, num_pictures=1)
    assert len(set(drawn[0][1:13])) == 12


def test_the_next_turn_reads_only_what_is_new(engine):
    """What was kept changes nothing but the number of ids that are read again."""
    first = requests([0, 1])
    begun = engine.generate(first, DECODING, keep=True)
    turns = [[*one.prompt, *done.ids, VOCABULARY.user, 8, 9] for one, done in zip(first, begun, strict=True)]
    second = [
        Request(prompt=turn, others=one.others, max_text_tokens=5, num_pictures=1, seed=7)
        for turn, one in zip(turns, first, strict=True)
    ]
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CachedRows, "read", lambda rows, ids, old=CachedRows.read: read.append(ids.shape) or old(rows, ids)
        )
        again = engine.generate(second, DECODING)
    longest = max(map(len, turns))
    assert read[0][1] < longest - 5
    fresh = engine.generate(second, DECODING)  # nothing was kept this time
    assert again == fresh


@pytest.mark.parametrize("preview_every", [None, 1, 5])
def test_a_stream_tells_what_generate_returns(engine, preview_every):
    asked = requests([0, 1, 2], start_picture=True)
    expected = engine.generate(asked, DECODING)
    events = list(engine.stream(asked, DECODING, preview_every=preview_every))
    for row, done in enumerate(expected):
        own = [event for event in events if event.row == row]
        assert [token for event in own if event.kind in ("text", "picture") for token in event.ids] == done.ids
        assert [event.kind for event in own].count("ended") == 1 and own[-1].kind == "ended"
        for index, event in enumerate(own):
            if event.kind == "picture_preview":
                whole = next(later.ids for later in own[index:] if later.kind == "picture")
                assert event.ids == whole[1 : 1 + len(event.ids)] and len(event.ids) % preview_every == 0
    previews = [event for event in events if event.kind == "picture_preview"]
    pictures = [event for event in events if event.kind == "picture"]
    assert len(previews) == len(pictures) * (12 // preview_every if preview_every else 0)


def test_who_stops_listening_stops_the_work(engine):
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        old = engine._extend
        patch.setattr(engine, "_extend", lambda *given: steps.append(1) or old(*given))
        stream = engine.stream(requests([0, 1], num_pictures=0), DECODING)
        assert next(stream).kind == "text"
        stream.close()
    assert len(steps) == 1


@pytest.mark.parametrize("start_picture", [False, True])
def test_a_row_that_fails_does_not_take_its_batch_down(model, start_picture, engine):
    """A row fails on what it alone has read: an embedding that is not a number."""
    broken = deepcopy(model)
    broken.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untied
    broken.model.embed_tokens.weight.data[22] = float("nan")
    engine = Engine(broken, VOCABULARY, native=engine.body.native is not None)
    asked = requests([0, 1], start_picture=start_picture)
    wrong = Request(
        prompt=[VOCABULARY.bos, 22], others=((4,),), max_text_tokens=9, num_pictures=1, start_picture=start_picture
    )
    done = engine.generate([asked[0], wrong, asked[1]], DECODING)
    assert done[1] == Continuation([], "not_a_number")
    assert [done[0], done[2]] == engine.generate(asked, DECODING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"others": [()]}, "guidance must have 1 other prompts, got 0 for row 0"),
        ({"others": [([],)]}, "a prompt must have 1 to 95 ids, got 0"),
        ({"others": [([4] * 96,)]}, "a prompt must have 1 to 95 ids, got 96"),
        ({"others": [([4] * 90,)], "start_picture": True}, "a prompt must have 1 to 82 ids, got 90"),
        ({"num_pictures": 0, "start_picture": True}, "num_pictures must be at least 1 to start with a picture, got 0"),
    ],
)
def test_wrong_requests(engine, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(engine, [0], **changes)


def test_requests_that_are_refused_before_any_work(model, engine):
    with pytest.raises(ValueError, match="requests must be at least one, got none"):
        engine.generate([], DECODING)
    with pytest.raises(ValueError, match="preview_every must be at least 1, got 0"):
        engine.stream(requests([0]), DECODING, preview_every=0)
    small = Engine(model, VOCABULARY, max_cache_bytes=20_000)
    message = "the cache of a batch must be at most 20000 bytes, got [0-9]+ for 2 rows of [0-9]+ ids"
    with pytest.raises(ValueError, match=message):
        generate(small, [0])
    with pytest.raises(ValueError, match=message):
        small.stream(requests([0]), DECODING)
    assert generate(small, [0], guidance=UNGUIDED, others=[()], num_pictures=0, max_text_tokens=2)
    with pytest.raises(ValueError, match="begun and leave_at must be left out of a row that begins with no picture"):
        requests([0], leave_at=3)
    code = VOCABULARY.code_range(0)[0]
    for changes, message in [
        ({"leave_at": 0}, r"leave_at must lie in \[1, 12\], got 0"),
        ({"leave_at": 13}, r"leave_at must lie in \[1, 12\], got 13"),
        ({"begun": (code,), "leave_at": 1}, r"leave_at must lie in \[2, 12\], got 1"),
        ({"begun": (code, code)}, "id after 1 of 12 codes must lie in"),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(Engine(model, VOCABULARY, native=False), [0], start_picture=True, **changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": -1.0}, "guidance must be at least 0 and finite, got -1.0"),
        ({"picture_scale": float("inf")}, "guidance must be at least 0 and finite, got inf"),
        ({"start": 0.6, "stop": 0.5}, "guidance must start and stop in 0 <= start <= stop <= 1, got 0.6 and 0.5"),
    ],
)
def test_wrong_guidance(values, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**values)


def test_a_model_of_another_vocabulary(model):
    with pytest.raises(ValueError, match=f"model must have the vocabulary's 46 ids, got {VOCABULARY.size}"):
        Engine(model, Vocabulary(24, VOCABULARY.layout))
