import pytest
import torch
import torch.nn.functional as F

from rebus.data.packing import PackedBatch, pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered
from rebus.model.cached_rows import CachedRows
from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.guidance import Guidance
from rebus.model.language_model import LanguageModelConfig, language_batch, loss
from rebus.model.levels import level_batch
from rebus.model.sampling import Sampling
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

TWO = Vocabulary(23, CodeLayout("sequence", 6, (Stream("one", 7), Stream("other", 11)), levels=(1, 2, 3)))
ONE = Vocabulary(9, CodeLayout("sequence", 7, (Stream("code", 16),), levels=(1, 2, 4)))
SIZES = LanguageModelConfig(dim=48, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=64, max_positions=64)
BY_LEVEL = Decoding(picture=Sampling(0.0), by_level=True)


@pytest.fixture(scope="module")
def model():
    model = SIZES.build(TWO, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model


def document(prompt, codes, vocabulary):
    ids = [*prompt, vocabulary.begin_picture, *codes, vocabulary.end_picture, vocabulary.eos]
    modality = [0] * (len(prompt) + 1) + [1] * len(codes) + [0, 0]
    return Rendered(ids, [NOT_TRAINED] * len(prompt) + ids[len(prompt) :], modality)


def request(prompt, **fields):
    return Request(prompt=prompt, max_text_tokens=0, num_pictures=1, start_picture=True, **fields)


def packed(documents, vocabulary, length):
    return PackedBatch.cat([pack_row(iter(row), length, vocabulary.pad) for row in documents])


def query_logits(model, batch):
    """Logits of the queries for each stream, from one masked pass over all documents."""
    inputs = {"input_ids": batch.packed.ids, "position_ids": batch.packed.positions, "attention_mask": batch.mask}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
    return [F.linear(hidden[head.places], model.lm_head.weight[head.start : head.stop]) for head in batch.heads[-2:]]


@pytest.mark.parametrize("native", [False, True])
def test_decoding_says_what_the_queries_of_a_whole_pass_do(model, native):
    prompts, others = [[1, 5, 9], [1, 7]], [[1, 4], [1, 4]]
    guidance = Guidance(scale=2.5, stop=0.6)
    requests = [request(prompt, others=(other,)) for prompt, other in zip(prompts, others, strict=True)]
    engine = Engine(model, TWO, native=native)
    drawn = engine.generate(requests, Decoding(picture=Sampling(0.0), guidance=guidance, by_level=True))
    codes = [row.ids[1:-1] for row in drawn]
    asked, unasked = (
        query_logits(
            model,
            level_batch(
                packed([[document(one, row, TWO)] for one, row in zip(which, codes, strict=True)], TWO, 19), TWO
            ),
        )
        for which in (prompts, others)
    )
    weights = torch.tensor([guidance.weights(code, 12) for code in range(12)]).T.unflatten(1, (6, 2))
    for stream in (0, 1):
        first, _ = TWO.code_range(stream)
        own, other = weights[:, :, stream].repeat(1, 2).unsqueeze(-1)
        mixed = own * asked[stream] + other * unasked[stream]
        assert (mixed.argmax(-1) + first).tolist() == [code for row in codes for code in row[stream::2]]


def test_queries_change_nothing_else(model):
    documents = [
        [document([1, 5], [27 + code % 7 if code % 2 == 0 else 34 + code % 11 for code in range(12)], TWO)] * 2
    ]
    documents += [[document([1, 8, 6], [27 if code % 2 == 0 else 40 for code in range(12)], TWO)]]
    plain = packed(documents, TWO, 40)
    batch, expected = level_batch(plain, TWO), language_batch(plain, TWO)
    body = model.model(
        input_ids=batch.packed.ids, position_ids=batch.packed.positions, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    for index, row in enumerate(documents):
        start = 0
        for one in row:
            alone = model.model(torch.tensor([one.ids])).last_hidden_state[0]
            torch.testing.assert_close(body[index, start : start + len(one.ids)], alone, rtol=0, atol=1e-5)
            start += len(one.ids)
    for own, other in zip(batch.heads, expected.heads, strict=False):
        assert own.ids.tolist() == other.ids.tolist() and own.start == other.start
    assert batch.num_targets.tolist() == [9, 18, 18, 18, 18]


def test_a_picture_takes_two_passes_a_level_and_comes_out_the_same_in_any_batch(model, monkeypatch):
    engine = Engine(model, TWO, native=False)
    decoding = Decoding(picture=Sampling(1.5), by_level=True)
    requests = [request([1, 5, 9], seed=3), request([1, 7], seed=4), request([1], seed=5)]
    together = engine.generate(requests, decoding)
    assert together == [engine.generate([one], decoding)[0] for one in requests]
    lengths, read = [], CachedRows.read
    monkeypatch.setattr(CachedRows, "read", lambda rows, ids: lengths.append(ids.shape[1]) or read(rows, ids))
    engine.generate(requests, decoding)
    assert lengths[1:] == [2, 2, 4, 4, 6, 6]  # the first reads the prompts


def test_rows_at_different_places_go_on_code_by_code(model):
    engine = Engine(model, TWO)
    asked = {"max_text_tokens": 3, "num_pictures": 1}
    requests = [Request(prompt=[1, 5], seed=1, **asked), Request(prompt=[1, 7], seed=2, start_picture=True, **asked)]
    for row in engine.generate(requests, BY_LEVEL):
        engine.grammar.spans(row.ids)


def sampled(generator):
    """A document: the word says the upper half of the first code, and each level those of the next."""

    def bit():
        return int(torch.randint(2, (), generator=generator))

    word = int(torch.randint(4, (), generator=generator))
    first = 4 * word + 2 * bit() + bit()
    second = [(first + 8 * bit()) % 16, (first + 1 + 8 * bit()) % 16]
    third = [(one + step + 8 * bit()) % 16 for one in second for step in (2, 5)]
    return word, [first, *second, *third]


def fits(word, codes):
    first, *second = codes[:3]
    expected = [first % 8, (first + 1) % 8, *((one + step) % 8 for one in second for step in (2, 5))]
    return first // 4 == word and [code % 8 for code in codes[1:]] == expected


@pytest.mark.slow
def test_levels_are_learned():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = SIZES.build(ONE, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first_code = ONE.code_range(0)[0]

    def learned(word, codes):
        return document([ONE.bos, 4 + word], [first_code + code for code in codes], ONE)

    for _ in range(400):
        rows = [[learned(*sampled(generator)) for _ in range(4)] for _ in range(8)]
        total, _ = loss(model, level_batch(packed(rows, ONE, 48), ONE))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    engine = Engine(model.eval(), ONE)
    requests = [request([ONE.bos, 4 + seed % 4], seed=seed) for seed in range(200)]
    for by_level in (True, False):
        rows = engine.generate(requests, Decoding(by_level=by_level))
        drawn = [[code - first_code for code in row.ids[1:-1]] for row in rows]
        assert sum(fits(seed % 4, codes) for seed, codes in enumerate(drawn)) > 180
        upper = torch.tensor([[code // 8 for code in codes[1:]] for codes in drawn]).float()
        assert (upper.mean(0) - 0.5).abs().max() < 0.15  # what is left open stays open
    guessed = Decoding(picture=Sampling(0.0), by_level=True)
    untrained = Engine(SIZES.build(ONE, generator).eval(), ONE).generate(requests[:20], guessed)
    assert not any(fits(seed % 4, [code - first_code for code in row.ids[1:-1]]) for seed, row in enumerate(untrained))


def test_nested_queries_have_the_levels_that_training_cuts_at():
    nested = NestedQueriesConfig(num_queries=11, shortest_prefix=2).build(16, 8, (((4, 4),),))
    layout = nested.code_layout((Stream("code", 5),))
    assert layout.levels == (2, 2, 4, 3) and CodeLayout.from_dict(layout.to_dict()) == layout


@pytest.mark.parametrize(("kind", "levels", "grid"), [("grid", (2, 4), (2, 3)), ("sequence", (2, 3), None)])
def test_levels_that_cannot_be_are_refused(kind, levels, grid):
    with pytest.raises(ValueError, match="levels must share out the 6 positions of a sequence, got"):
        CodeLayout(kind, 6, (Stream("code", 5),), grid, levels=levels)


def test_codes_without_levels_are_not_drawn_by_level():
    vocabulary = Vocabulary(9, CodeLayout("sequence", 7, (Stream("code", 16),)))
    engine = Engine(SIZES.build(vocabulary, torch.Generator().manual_seed(0)), vocabulary)
    with pytest.raises(ValueError, match="by_level must be False for codes without levels, got True"):
        engine.generate([request([1, 5])], BY_LEVEL)
