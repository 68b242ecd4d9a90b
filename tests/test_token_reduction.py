import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rebus.evaluation.token_reduction import main
from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.grammar import Grammar
from rebus.model.language_model import LanguageModelConfig
from rebus.model.sampling import Sampling
from rebus.model.token_reduction import AttendedCodes, DiverseCodes, FirstCodes, MergedCodes, prompt_row
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(23, CodeLayout("grid", 12, (Stream("code", 17),), (3, 4)))
FIRST_CODE = VOCABULARY.code_range(0)[0]
PICTURE = [VOCABULARY.begin_picture, *(FIRST_CODE + 5 * index % 17 for index in range(12)), VOCABULARY.end_picture]
PROMPT = [VOCABULARY.bos, VOCABULARY.user, *PICTURE, 7, 8, VOCABULARY.eos, VOCABULARY.assistant]
CODES = slice(3, 15)
REDUCTIONS = [FirstCodes, DiverseCodes, MergedCodes, AttendedCodes]


@pytest.fixture(scope="module")
def model():
    config = LanguageModelConfig(dim=48, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=61, max_positions=96)
    model = config.build(VOCABULARY, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model


def logits_of(model, reduction, native=False):
    """Logits after the prompt, and after one id more."""
    engine = Engine(model, VOCABULARY, native=native)
    with torch.inference_mode():
        row = prompt_row(PROMPT, [], engine.body.parts.embeddings, engine.grammar, reduction)
        cache = engine.body.start_reduced([row], 40, reduction)
        first = engine.body.logits(cache.last, 0, VOCABULARY.size)[0]
        cache.read(torch.tensor([[9]]))
        return torch.stack([first, engine.body.logits(cache.last, 0, VOCABULARY.size)[0]])


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_what_keeps_all_codes_changes_nothing(model, kind):
    expected = model(torch.tensor([[*PROMPT, 9]])).logits[0, -2:]
    torch.testing.assert_close(logits_of(model, kind(num_codes=12)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("keep_positions", [False, True])
@pytest.mark.parametrize("kind", [FirstCodes, DiverseCodes, MergedCodes])
def test_logits_are_those_of_transformers_over_what_is_left(model, kind, keep_positions, native):
    reduction = kind(num_codes=5, keep_positions=keep_positions)
    embeddings = model.model.embed_tokens(torch.tensor([*PROMPT, 9]))
    codes, places = reduction.select(embeddings[CODES])
    assert len(codes) == 5 and places.tolist() == sorted(set(places.tolist()))
    read = torch.cat([embeddings[: CODES.start], codes, embeddings[CODES.stop :]])
    positions = torch.tensor(
        [*range(CODES.start), *(CODES.start + places).tolist(), *range(CODES.stop, len(PROMPT) + 1)]
    )
    if not keep_positions:
        positions = torch.arange(len(positions))
    expected = model(inputs_embeds=read[None], position_ids=positions[None]).logits[0, -2:]
    torch.testing.assert_close(logits_of(model, reduction, native), expected, rtol=0, atol=1e-5)


def test_after_a_block_the_codes_stay_that_the_last_id_looks_at_most(model):
    """The stock blocks called one by one, the second with a mask over the codes that go."""
    stock = model.model
    ids = torch.tensor([[*PROMPT, 9]])
    turns = stock.rotary_emb(stock.embed_tokens(ids), torch.arange(ids.shape[1])[None])
    causal = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)[None, None]
    model.set_attn_implementation("eager")
    attention = model(ids[:, :-1], output_attentions=True).attentions[0][0, :, -1].mean(0)[CODES]
    hidden = stock.layers[0](stock.embed_tokens(ids), attention_mask=causal, position_embeddings=turns)
    going = CODES.start + attention.argsort()[:8]
    causal[..., going] = float("-inf")
    causal[..., going, going] = 0  # what goes still reads itself, and is read by nobody
    expected = stock.norm(stock.layers[1](hidden, attention_mask=causal, position_embeddings=turns))
    expected = model.lm_head(expected)[0, -2:]
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(logits_of(model, AttendedCodes(num_codes=4, num_blocks=1)), expected, rtol=0, atol=1e-5)


def test_diverse_codes_are_one_of_each_kind():
    kinds = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    codes = torch.cat([kind + 0.01 * torch.randn(5, 16) for kind in kinds])
    places = DiverseCodes(num_codes=4).select(codes).places
    assert sorted(place // 5 for place in places.tolist()) == [0, 1, 2, 3]


@given(number=st.integers(1, 15), total=st.integers(1, 15), seed=st.integers(0, 99))
def test_merging_keeps_the_mean(number, total, seed):
    codes = torch.randn(total, 8, generator=torch.Generator().manual_seed(seed))
    merged, places = MergedCodes(num_codes=number).select(codes)
    assert len(merged) == len(places) == min(number, total)
    if number == 1:
        torch.testing.assert_close(merged[0], codes.mean(0))


def test_like_codes_merge():
    codes = torch.eye(6)[[0, 0, 1, 2, 3, 3, 4, 5]]
    merged = MergedCodes(num_codes=6).select(codes).codes
    assert sorted(merged.argmax(-1).tolist()) == [0, 1, 2, 3, 4, 5] and merged.max(-1).values.eq(1).all()


def test_only_pictures_that_the_user_shows_are_reduced():
    drawn = [VOCABULARY.user, 7, VOCABULARY.eos, VOCABULARY.assistant, *PICTURE, VOCABULARY.eos]
    ids = [VOCABULARY.bos, *drawn, VOCABULARY.user, *PICTURE, 5, *PICTURE, VOCABULARY.eos, VOCABULARY.assistant]
    embeddings = torch.arange(VOCABULARY.size)[:, None].float()
    row = prompt_row(ids, [VOCABULARY.begin_picture], embeddings, Grammar(VOCABULARY), FirstCodes(num_codes=3))
    shown = [*PICTURE[:4], VOCABULARY.end_picture]
    tail = [VOCABULARY.eos, VOCABULARY.assistant, VOCABULARY.begin_picture]
    assert row.embeddings[:, 0].tolist() == [VOCABULARY.bos, *drawn, VOCABULARY.user, *shown, 5, *shown, *tail]
    assert int(row.positions[-1]) == len(ids) and [one.stop - one.start for one in row.pictures] == [3, 3]


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_rows_of_a_batch_are_continued_as_alone(model, kind):
    engine = Engine(model, VOCABULARY)
    settings = {"max_text_tokens": 6, "num_pictures": 1}
    asked = [Request(prompt=PROMPT, seed=1, **settings), Request(prompt=[1, 5], seed=2, start_picture=True, **settings)]
    decoding = Decoding(text=Sampling(2.0), reduction=kind(num_codes=3))
    together = engine.generate(asked, decoding)
    assert together == [engine.generate([one], decoding)[0] for one in asked]
    assert together[1] == engine.generate(asked[1:], Decoding(text=Sampling(2.0)))[0]  # has no picture to reduce
    assert len(together[1].ids) > 13  # what it draws is whole


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_wrong_numbers(kind):
    with pytest.raises(ValueError, match="num_codes must be at least 1, got 0"):
        kind(num_codes=0)
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        AttendedCodes(num_codes=1, num_blocks=0)


@pytest.mark.slow
def test_the_command_prints_and_draws_the_curves(saved_model, tmp_path, capsys):
    plot = tmp_path / "curves.png"
    main(["--model", str(saved_model), "--limit", "7", "--plot", str(plot), "--json"])
    curves = json.loads(capsys.readouterr().out.splitlines()[-1])["curves"]
    assert all(list(values) == ["9", "7", "4", "2", "1"] for values in curves.values()) and len(curves) == 5
    assert all(value["n"] == 7 for values in curves.values() for value in values.values())
    with Image.open(plot) as image:
        assert image.width > 500


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--plot", "curves.jpg"], "--plot must be a .png file in a folder that exists, got curves.jpg"),
    ],
)
def test_the_command_refuses(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert message in capsys.readouterr().err
