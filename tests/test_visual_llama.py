import json
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rebus.data.packing import PackedBatch, pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered
from rebus.model import language_model
from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.grammar import Grammar
from rebus.model.guidance import Guidance
from rebus.model.heads import BitHeadConfig, DepthTransformerConfig, ParallelHeadsConfig
from rebus.model.language_model import DOCUMENT_ATTENTION, LanguageModelConfig, language_batch
from rebus.model.picture_positions import num_positions, position_batch
from rebus.model.sampling import Sampling
from rebus.model.token_reduction import FirstCodes
from rebus.model.visual_input import CodeRowsConfig, ContinuousFeaturesConfig, ProjectedCodesConfig, code_features
from rebus.model.visual_llama import VisionLayersConfig, VisualLlama, VisualLlamaConfig
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

ONE = Vocabulary(23, CodeLayout("grid", 6, (Stream("code", 16),), (2, 3)))
TWO = Vocabulary(23, CodeLayout("grid", 6, (Stream("coarse", 8), Stream("fine", 16)), (2, 3)))
LANGUAGE = LanguageModelConfig(dim=36, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=53, max_positions=61)
INPUTS = {
    "rows": CodeRowsConfig(),
    "projected": ProjectedCodesConfig(code_dim=5, hidden_dim=19),
    "continuous": ContinuousFeaturesConfig(feature_dim=7, code_dim=5, hidden_dim=19),
}
HEADS = {
    "parallel": ParallelHeadsConfig(),
    "depth": DepthTransformerConfig(dim=12, num_layers=2, num_heads=3),
    "bits": BitHeadConfig(),
}
EXTRA = VisionLayersConfig(num_first=2, num_last=1)
OPTIONS = {
    "rows, parallel": VisualLlamaConfig(language=LANGUAGE),
    "projected, depth": VisualLlamaConfig(language=LANGUAGE, visual_input=INPUTS["projected"], head=HEADS["depth"]),
    "continuous, bits": VisualLlamaConfig(language=LANGUAGE, visual_input=INPUTS["continuous"], head=HEADS["bits"]),
    "rows, depth, vision layers": VisualLlamaConfig(language=LANGUAGE, head=HEADS["depth"], vision_layers=EXTRA),
}


SLOW_TWO = [pytest.param(one, marks=pytest.mark.slow) for one in ("rows, parallel", "projected, depth")]


def built(config, vocabulary):
    """A model far from uniform predictions, which likes to draw."""
    model = config.build(vocabulary, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(5)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("table"):
            torch.nn.init.normal_(tensor, generator=generator)
        elif tensor.ndim > 1:
            tensor.data *= 5
        elif name.endswith("norm.weight"):  # apart from one another
            tensor.data += torch.rand(len(tensor), generator=generator) - 0.5
    rows = model.llama.lm_head.weight.data
    rows[vocabulary.begin_picture] = rows[4:23].mean(0) * 6
    return model.requires_grad_(False)


def picture(vocabulary, seed: int) -> list[int]:
    rng = random.Random(seed)
    ranges = [vocabulary.code_range(stream) for stream in range(len(vocabulary.layout.streams))]
    codes = [rng.randrange(*one) for _ in range(vocabulary.layout.num_positions) for one in ranges]
    return [vocabulary.begin_picture, *codes, vocabulary.end_picture]


def documents(vocabulary) -> list[list[int]]:
    shown = [picture(vocabulary, seed) for seed in range(4)]
    return [
        [vocabulary.bos, 5, 6, *shown[0], vocabulary.eos],
        [vocabulary.bos, *shown[1], 7, *shown[2], 8, 9, vocabulary.eos],
        [vocabulary.bos, 11, 12, 13, 14, vocabulary.eos],
        [vocabulary.bos, vocabulary.user, *shown[3], vocabulary.eos, vocabulary.assistant, 10, vocabulary.eos],
    ]


def packed(rows: list[list[list[int]]], vocabulary, length: int = 60) -> PackedBatch:
    """Rows of documents in which everything but bos is a target."""
    rendered = [
        [Rendered(ids, [NOT_TRAINED, *ids[1:]], Grammar(vocabulary).modality(ids)) for ids in row] for row in rows
    ]
    return PackedBatch.cat([pack_row(iter(row), length, vocabulary.pad) for row in rendered])


def hidden_of(model, ids, features=()):
    """Final hidden states of one sequence by itself."""
    return model(position_batch(packed([[ids]], model.vocabulary, len(ids)), model.vocabulary, features))


def features(number: int) -> list[torch.Tensor]:
    return list(torch.randn(number, 6, 7, generator=torch.Generator().manual_seed(9)))


def as_stock(model):
    """The stock model with the same weights, whose last ids are the codes."""
    stock = LANGUAGE.build(model.vocabulary, torch.Generator().manual_seed(0)).eval()
    state = model.llama.state_dict()
    rows = torch.cat([state["lm_head.weight"], model.visual_input.rows.weight])
    stock.load_state_dict({**state, "lm_head.weight": rows, "model.embed_tokens.weight": rows})
    model.head.to_logits.weight = model.visual_input.rows.weight  # as tied as the stock one
    return stock.requires_grad_(False)


@pytest.mark.parametrize("attention", ["sdpa", DOCUMENT_ATTENTION])
def test_rows_in_and_one_softmax_out_are_the_stock_model(attention):
    model = built(VisualLlamaConfig(language=LANGUAGE), ONE)
    stock, one = as_stock(model), documents(ONE)
    for llama in (stock, model.llama):
        llama.set_attn_implementation(attention)
    rows = packed([one[:2], one[2:]], ONE)
    expected, metrics = language_model.loss(stock, language_batch(rows, ONE))
    got, own = model.loss(position_batch(rows, ONE))
    torch.testing.assert_close(got, expected)
    assert own.keys() < metrics.keys()
    torch.testing.assert_close(own, {name: metrics[name] for name in own})
    stock.set_attn_implementation("sdpa")
    model.llama.set_attn_implementation("sdpa")
    logits = F.linear(hidden_of(model, one[1]), stock.lm_head.weight)
    torch.testing.assert_close(logits, stock(torch.tensor([one[1]])).logits[0], rtol=0, atol=1e-5)


def test_rows_in_and_one_softmax_out_draw_what_the_stock_model_draws():
    model = built(VisualLlamaConfig(language=LANGUAGE), ONE)
    asked, decoding = requests(ONE, Guidance(scale=2.5)), Decoding(text=Sampling(3.0), guidance=Guidance(scale=2.5))
    expected = Engine(as_stock(model), ONE, native=False).generate(asked, decoding)
    assert Engine(model, ONE).generate(asked, decoding) == expected


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_loss_is_that_of_the_documents_one_by_one(name):
    model, each = built(OPTIONS[name], TWO), documents(TWO)
    total, metrics = model.loss(position_batch(packed([each[:2], each[2:]], TWO), TWO))
    alone = [position_batch(packed([[one]], TWO, len(one)), TWO) for one in each]
    counts = torch.stack([one.num_targets for one in alone])
    losses = [model.loss(one)[1] for one in alone]
    sums = torch.stack([torch.stack([one["text_loss"], one["code_loss"]]) for one in losses]) * counts
    torch.testing.assert_close(total, sums.sum() / counts.sum())
    torch.testing.assert_close(metrics["code_loss"], sums[:, 1].sum() / counts[:, 1].sum())
    assert counts[:, 1].tolist() == [12, 24, 0, 12]


@pytest.mark.parametrize("name", OPTIONS)
def test_what_comes_later_changes_nothing_before(name):
    model, ids = built(OPTIONS[name], TWO), documents(TWO)[1]
    whole = hidden_of(model, ids)
    changed = [*ids[:10], *picture(TWO, 77)[10 - 1 :], *ids[15:]]  # positions up to the fifth are the same
    torch.testing.assert_close(hidden_of(model, changed)[:6], whole[:6], rtol=0, atol=1e-5)
    assert not torch.allclose(hidden_of(model, changed)[6:], whole[6:], atol=1e-3)


def test_text_goes_past_vision_layers_but_pictures_see_it_there():
    model = built(OPTIONS["rows, depth, vision layers"], TWO)
    plain = replace(model.config, vision_layers=None).build(TWO, torch.Generator())
    names = {f"llama.model.layers.{index}": f"llama.model.layers.{index + 2}" for index in range(2)}
    state = model.state_dict()
    for name in plain.state_dict():
        prefix = next((one for one in names if name.startswith(one)), "")
        plain.state_dict()[name].copy_(state[names[prefix] + name[len(prefix) :] if prefix else name])
    text, shown = documents(TWO)[2], documents(TWO)[0]
    assert torch.equal(hidden_of(model, text), hidden_of(plain, text))
    assert torch.equal(hidden_of(model, shown)[:3], hidden_of(plain, shown)[:3])  # before the picture
    assert not torch.allclose(hidden_of(model, shown)[3:10], hidden_of(plain, shown)[3:10], atol=1e-2)
    # A key of text in the first block is all that a single vision block could know of the words before.
    alone = replace(
        model.config,
        language=replace(LANGUAGE, num_layers=1),
        vision_layers=VisionLayersConfig(num_first=1, num_last=0),
    )
    model = built(alone, TWO)
    attention = model.llama.model.layers[1].self_attn
    attention.o_proj.weight.zero_()  # the text's own block moves nothing
    before = hidden_of(model, shown)
    after = hidden_of(model, [shown[0], 7, 8, *shown[3:]])
    assert not torch.allclose(before[3:10], after[3:10], atol=1e-2)


BRANCHES = {
    "none": Guidance(),
    "one": Guidance(scale=2.5),
    "two, some codes": Guidance(scale=2.5, picture_scale=1.5, start=0.3, stop=0.8),
}


def requests(vocabulary, guidance, rows=(0, 1, 2), *, with_features=False, **changes) -> list[Request]:
    shown = [picture(vocabulary, 40), picture(vocabulary, 41)]
    prompts = [
        [vocabulary.bos, vocabulary.user, 5, 6, vocabulary.eos, vocabulary.assistant],
        [vocabulary.bos, *[8, 9, 4] * 5],
        [vocabulary.bos, vocabulary.user, *shown[0], 9, *shown[1], 7],
    ]
    others = [([vocabulary.bos], [vocabulary.bos, 4])] * 2 + [([vocabulary.bos, 4, *shown[0]], [vocabulary.bos])]
    settings = {"max_text_tokens": 7, "num_pictures": 2, **changes}
    return [
        Request(
            prompt=prompts[row],
            others=others[row][: guidance.num_others],
            seed=row,
            start_picture=row != 1,
            features=(features(1)[0], None) if with_features and row == 2 else (),
            **settings,
        )
        for row in rows
    ]


@pytest.mark.parametrize(
    "kind", ["two, some codes", *(pytest.param(one, marks=pytest.mark.slow) for one in ("none", "one"))]
)
@pytest.mark.parametrize("name", OPTIONS)
def test_cached_decoding_is_that_of_whole_passes(name, kind, monkeypatch):
    model, guidance = built(OPTIONS[name], TWO), BRANCHES[kind]
    asked = requests(TWO, guidance, with_features="continuous" in name)
    engine, seen = Engine(model, TWO), []
    extend = engine.visual.extend
    monkeypatch.setattr(
        engine.visual,
        "extend",
        lambda rows, hidden, *given: (
            seen.extend((row.index, list(row.ids), hidden[row.index :: 3], given[1]) for row in rows),
            extend(rows, hidden, *given),
        ),
    )
    done = engine.generate(asked, Decoding(text=Sampling(3.0), guidance=guidance))
    for row in done:
        Grammar(TWO).spans(row.ids)  # raises on a truncated picture
    assert len(seen) % 6 == 0 and len(seen) >= 12
    expected = [
        [hidden_of(model, ids, given) for ids, given in whole_branches(request, row.ids)]
        for request, row in zip(asked, done, strict=True)
    ]
    for index, so_far, hidden, weights in seen:
        place = so_far[::-1].index(TWO.begin_picture) // 2
        assert weights == guidance.weights(place, TWO.layout.num_positions)
        prompts = (asked[index].prompt, *asked[index].others)
        for prompt, whole, got in zip(prompts, expected[index], hidden, strict=True):
            last = num_positions([*prompt, *so_far], TWO) - 1
            torch.testing.assert_close(got, whole[last], rtol=0, atol=1e-5)


def whole_branches(request, ids):
    """The ids of each branch in the end, and the features of its pictures."""
    for prompt in (request.prompt, *request.others):
        whole = [*prompt, *ids]
        given = list(request.features[: prompt.count(TWO.begin_picture)])
        yield whole, given + [None] * (whole.count(TWO.begin_picture) - len(given)) if request.features else ()


@pytest.mark.parametrize("name", [*SLOW_TWO, "continuous, bits", "rows, depth, vision layers"])
def test_a_row_is_the_same_alone_and_in_a_batch(name):
    guidance = Guidance(scale=2.0)
    engine = Engine(built(OPTIONS[name], TWO), TWO)
    decoding, settings = Decoding(text=Sampling(3.0), guidance=guidance), {"with_features": "continuous" in name}
    together = engine.generate(requests(TWO, guidance, (2, 0, 1, 0), **settings), decoding)
    alone = [engine.generate(requests(TWO, guidance, (row,), **settings), decoding)[0] for row in (2, 0, 1, 0)]
    assert together == alone
    assert together[1] == together[3]
    if settings["with_features"]:
        assert engine.generate(requests(TWO, guidance, (2,)), decoding)[0] != together[0]


def test_log_likelihoods_are_those_of_a_whole_pass():
    model = built(OPTIONS["rows, depth, vision layers"], TWO)
    asked = [[TWO.bos, *picture(TWO, 1), 9], [TWO.bos, 5]]
    texts = [[8, 7, TWO.eos], [5]]
    for prompt, text, got in zip(asked, texts, Engine(model, TWO).log_likelihoods(asked, texts), strict=True):
        logits = F.linear(hidden_of(model, [*prompt, *text]), model.llama.lm_head.weight)[-len(text) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(text).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_positions_are_counted_not_ids():
    """The prompt leaves 17 of 61 positions, room for two pictures of 8; flat, not even one of 14 ids would fit."""
    model = built(OPTIONS["rows, parallel"], TWO)
    prompt = [TWO.bos, *picture(TWO, 0), *picture(TWO, 1), *[5] * 27]  # 44 positions, 56 ids
    asked = Request(prompt=prompt, max_text_tokens=50, num_pictures=9, start_picture=True, seed=3)
    events = list(Engine(model, TWO).stream([asked], Decoding(text=Sampling(3.0)), preview_every=4))
    drawn = [event for event in events if event.kind == "picture"]
    assert drawn and all(len(TWO.unflatten(event.ids[1:-1]).ids[0]) == 6 for event in drawn)
    assert [len(event.ids) for event in events if event.kind == "picture_preview"] == [4, 8, 12] * len(drawn)
    num_text = sum(len(event.ids) for event in events if event.kind == "text")
    assert events[-1].kind == "ended" and 44 + 8 * len(drawn) + num_text <= 61


def test_a_row_that_fails_does_not_take_its_batch_down():
    model = built(OPTIONS["projected, depth"], TWO)
    asked = requests(TWO, Guidance(), (0, 1))
    expected = Engine(model, TWO).generate(asked, Decoding())
    wrong = Request(prompt=[TWO.bos, 22], max_text_tokens=9, num_pictures=1, start_picture=True)
    model.llama.lm_head.weight = torch.nn.Parameter(model.llama.lm_head.weight.clone())  # untied
    model.llama.model.embed_tokens.weight[22] = float("nan")
    done = Engine(model, TWO).generate([asked[0], wrong, asked[1]], Decoding())
    assert (done[1].ids, done[1].ended) == ([], "not_a_number")
    assert [done[0], done[2]] == expected


@pytest.mark.parametrize("name", OPTIONS)
def test_a_saved_model_is_the_same(name, tmp_path):
    model, rows = built(OPTIONS[name], TWO), packed([documents(TWO)[:2]], TWO)
    model.save(tmp_path / "model")
    loaded = VisualLlama.load(tmp_path / "model")
    assert loaded.config == model.config and loaded.vocabulary == TWO and not loaded.training
    assert torch.equal(loaded.loss(position_batch(rows, TWO))[0], model.loss(position_batch(rows, TWO))[0])
    assert loaded.llama.lm_head.weight is loaded.llama.model.embed_tokens.weight


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="must hold a saved language model"):
        VisualLlama.load(tmp_path)
    built(OPTIONS["rows, parallel"], TWO).save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["language"]["dim"] = 48
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="the weights must fit config.json, got"):
        VisualLlama.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json must have config and vocabulary, got \[\]"):
        VisualLlama.load(tmp_path)


def test_fresh_weights_follow_from_the_generator():
    config = OPTIONS["projected, depth"]
    one, same, other = (config.build(TWO, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.codes.weight"], other["head.codes.weight"])


def test_features_of_codes_are_those_of_the_quantizer():
    """Residual streams add up, and streams with channels of their own too; a product is refused."""
    generator, sizes = torch.Generator().manual_seed(0), (8, 16)
    books = [torch.randn(size, 5, generator=generator) for size in sizes]
    model = built(OPTIONS["projected, depth"], TWO)
    codes = torch.tensor([[3, 15], [0, 0], [7, 2]])

    def residual(ids):
        return books[0][ids[..., 0]] + books[1][ids[..., 1]]

    model.visual_input.place(residual)
    got = model.visual_input.of_codes(codes)
    torch.testing.assert_close(got, model.visual_input.of_features(residual(codes)))
    both = code_features(lambda ids: torch.cat([books[0][ids[..., 0]], books[1][ids[..., 1]]], -1), sizes, codes.device)
    torch.testing.assert_close(both[3] + both[8 + 15], torch.cat([books[0][3], books[1][15]]))
    with pytest.raises(ValueError, match="features of a position must be the sum of what its codes add"):
        model.visual_input.place(lambda ids: books[0][ids[..., 0]] * books[1][ids[..., 1]])
    with pytest.raises(ValueError, match="features of codes must have 5 channels, got 3"):
        model.visual_input.place(lambda ids: residual(ids)[..., :3])


def test_a_tokenizer_gets_gradients_through_its_features():
    model, ids = built(OPTIONS["projected, depth"], TWO), documents(TWO)[3]
    given = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    batch = position_batch(packed([[ids]], TWO), TWO, [given])
    (gradient,) = torch.autograd.grad(model.loss(batch)[0], [given])
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("rows, parallel", [torch.zeros(6, 7)], "features must be left out where rows of codes are read"),
        ("continuous, bits", [torch.zeros(6, 8)], "features must have 7 channels, got 8"),
        ("continuous, bits", [torch.zeros(5, 7)], "features of a picture must be one for each of 6 positions, got 5"),
        ("continuous, bits", [None, None], "features must be one for each of 1 pictures, got 2"),
    ],
)
def test_wrong_features(name, given, message):
    with pytest.raises(ValueError, match=message):
        hidden_of(built(OPTIONS[name], TWO), documents(TWO)[0], given)


def test_what_is_not_done_is_refused():
    model = built(OPTIONS["rows, parallel"], TWO)
    engine, asked = Engine(model, TWO), requests(TWO, Guidance(), (2,))
    for decoding, message in [
        (Decoding(guesses=2), "guesses must be 0 for a model that draws whole positions, got 2"),
        (Decoding(reduction=FirstCodes(num_codes=2)), "reduction must be None for a model that draws whole positions"),
        (Decoding(picture=Sampling(repetition_penalty=2.0)), "repetition_penalty of pictures must be 1.0 for"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.generate(asked, decoding)
    shown = replace(asked[0], features=(None,))
    with pytest.raises(ValueError, match="features must be one for each of the prompt's 2 pictures, got 1 and"):
        engine.stream([shown], Decoding())
    with pytest.raises(ValueError, match="begun and leave_at must be left out for a model that draws whole"):
        engine.generate([replace(asked[0], start_picture=True, leave_at=2)], Decoding())
    stock = Engine(LANGUAGE.build(TWO, torch.Generator().manual_seed(0)), TWO, native=False)
    with pytest.raises(ValueError, match="features must be left out for a stock model, which reads codes, got some"):
        stock.generate([shown], Decoding())
    with pytest.raises(ValueError, match="model must be made for .*, got one for"):
        Engine(model, ONE)
    with pytest.raises(
        ValueError, match="num_first and num_last must be at least 0 and together at least 1, got 0 and 0"
    ):
        VisionLayersConfig(num_first=0, num_last=0)
