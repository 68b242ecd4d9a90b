import pytest
import torch

from rebus.model.engine import Engine
from rebus.model.grammar import Grammar
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
FREE = Sampling(temperature=3.0)


@pytest.fixture(scope="module")
def model():
    config = LanguageModelConfig(dim=48, num_layers=3, num_heads=6, num_kv_heads=2, ffn_dim=61, max_positions=96)
    model = config.build(VOCABULARY, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    begin = VOCABULARY.begin_picture
    model.lm_head.weight.data[begin] = model.lm_head.weight.data[4:23].mean(0) * 6  # a model that likes to draw
    return model


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def engine(model, request):
    made = Engine(model, VOCABULARY, native=request.param)
    if request.param and made.body.native is None:
        pytest.skip("no C++ compiler")
    return made


def generate(engine, rows, **changes):
    settings = {
        "unconditional": [OTHER[row] for row in rows],
        "guidance": 2.5,
        "text": FREE,
        "picture": Sampling(),
        "max_text_tokens": 13,
        "num_pictures": 2,
        "seeds": [100 + row for row in rows],
    }
    return engine.generate([ASKED[row] for row in rows], **{**settings, **changes})


@pytest.mark.parametrize("start_picture", [True, False])
@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2]])
def test_logits_are_those_of_two_whole_passes_of_transformers(model, engine, monkeypatch, rows, start_picture):
    seen = []

    def spied(hidden, indices, ranges, guidance):
        logits = Engine.logits(engine, hidden, indices, ranges, guidance)
        seen.extend((index, ranges, guidance, row) for index, row in zip(indices, logits, strict=True))
        return logits

    monkeypatch.setattr(engine, "logits", spied)
    generated = generate(engine, rows, start_picture=start_picture)
    num_read = [int(start_picture)] * len(rows)
    for index, ranges, guidance, logits in seen:
        ids = generated[index]
        num_read[index] += ids[num_read[index]] == VOCABULARY.end_picture  # never scored
        so_far = ids[: num_read[index]]
        assert ranges[0][0] <= ids[num_read[index]] < ranges[-1][1]
        num_read[index] += 1
        asked, other = (
            model(torch.tensor([[*prompts[rows[index]], *so_far]])).logits[0, -1] for prompts in (ASKED, OTHER)
        )
        assert guidance == (2.5 if _inside(so_far) else 1)
        expected = other + guidance * (asked - other)
        for start, stop in ranges:
            torch.testing.assert_close(
                logits[start - ranges[0][0] : stop - ranges[0][0]], expected[start:stop], rtol=0, atol=1e-5
            )
    assert any(guidance != 1 for _, _, guidance, _ in seen) or not start_picture


def _inside(ids):
    return ids.count(VOCABULARY.begin_picture) > ids.count(VOCABULARY.end_picture)


def test_a_row_is_the_same_alone_and_in_a_batch(engine):
    together = generate(engine, [2, 0, 1, 0], seeds=[102, 100, 101, 9])
    assert together[:3] == [generate(engine, [row])[0] for row in (2, 0, 1)]
    assert together[3] != together[1]
    assert any(VOCABULARY.begin_picture in row for row in together)


def test_guidance_of_one_and_equal_branches_change_nothing(engine):
    plain = generate(engine, [0, 1], unconditional=None, start_picture=True)
    assert generate(engine, [0, 1], guidance=1.0, start_picture=True) == plain
    assert generate(engine, [0, 1], unconditional=[ASKED[0], ASKED[1]], start_picture=True) == plain
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
        settings = {"text": FREE, "picture": Sampling(), "num_pictures": 9, "seeds": [seed, seed]}
        long, _ = engine.generate([prompt, ASKED[0]], max_text_tokens=60, **settings)
        Grammar(VOCABULARY).spans(long)
        assert long[-1] == VOCABULARY.eos or len(prompt) + len(long) == 96


def test_greedy_decoding_is_that_of_transformers(model, engine):
    prompt = torch.tensor([ASKED[1]])
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=20,
        do_sample=False,
        suppress_tokens=[0, 1, 3, *range(VOCABULARY.num_text, VOCABULARY.size)],
    )
    greedy = Sampling(temperature=0.0)
    own = engine.generate([ASKED[1]], text=greedy, picture=greedy, max_text_tokens=20, num_pictures=0, seeds=[0])
    assert own[0] == expected[0, len(ASKED[1]) :].tolist()


def test_log_likelihoods_are_those_of_one_whole_pass_of_transformers(model, engine):
    texts = [[9, 8, 7, VOCABULARY.eos], [5], [6, 6, 20]]
    own = engine.log_likelihoods(ASKED, texts)
    for prompt, text, got in zip(ASKED, texts, own, strict=True):
        logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1, : VOCABULARY.control_range[1]]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(text).unsqueeze(1)).sum()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_bfloat16_draws_too(model):
    half = LanguageModelConfig(dim=48, num_layers=1, num_heads=6, num_kv_heads=6, ffn_dim=61, max_positions=96)
    engine = Engine(half.build(VOCABULARY, torch.Generator().manual_seed(0)).bfloat16(), VOCABULARY)
    assert len(generate(engine, [0, 1], max_text_tokens=0, num_pictures=1, start_picture=True)[1]) == 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 2]}, "prompts must be at least one, .* got 1 prompts, 2 seeds, 1 unconditional"),
        ({"unconditional": []}, "prompts must be at least one"),
        ({"unconditional": [[]]}, "a prompt must have 1 to 95 ids, got 0"),
        ({"unconditional": [[4] * 96]}, "a prompt must have 1 to 95 ids, got 96"),
        ({"unconditional": [[4] * 90], "start_picture": True}, "a prompt must have 1 to 82 ids, got 90"),
        ({"num_pictures": 0, "start_picture": True}, "num_pictures must be at least 1 to start with a picture, got 0"),
    ],
)
def test_wrong_requests(engine, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(engine, [0], **changes)


def test_a_model_of_another_vocabulary(model):
    with pytest.raises(ValueError, match=f"model must have the vocabulary's 46 ids, got {VOCABULARY.size}"):
        Engine(model, Vocabulary(24, VOCABULARY.layout))
