import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.model import native_library
from rebus.model.cached_llama import CachedLlama
from rebus.model.language_model import LanguageModelConfig
from rebus.model.llama_parts import llama_parts
from rebus.model.native_llama import SOURCE, NativeLlama
from rebus.model.sampling import Sampling
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

VOCABULARY = Vocabulary(23, CodeLayout("grid", 6, (Stream("coarse", 7),), (2, 3)))
ROWS = [[1, 5, 6], [1, 9, 8, 7, 6, 5, 4], [1]]

needs_compiler = pytest.mark.skipif(native_library.native_library(SOURCE) is None, reason="no C++ compiler")


def model_of(**changes):
    """A model of which no width is a whole number of vectors, and whose weights bfloat16 can hold."""
    sizes = {"dim": 40, "num_layers": 2, "num_heads": 5, "num_kv_heads": 5, "ffn_dim": 53, "max_positions": 64}
    model = LanguageModelConfig(**{**sizes, **changes}).build(VOCABULARY, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    return model.to(torch.bfloat16)


def read(body, rows, num_steps):
    """Returns the rows after a number of ids read one by one, and the logits of some ids to come."""
    with torch.inference_mode():
        cache = body.start(rows, 40)
        for index in range(num_steps):
            cache.read(torch.tensor([[4 + (index + row) % 20] for row in range(len(rows))]))
        return cache, body.logits(cache.last, 3, 29)


@needs_compiler
@pytest.mark.parametrize(
    "heads", [{}, {"num_kv_heads": 1}, {"dim": 104, "num_heads": 1, "num_kv_heads": 1}], ids=["", "shared", "wide"]
)
@pytest.mark.parametrize("num_rows", [1, 3, 7, 8, 9, 20])
def test_a_step_is_that_of_torch_for_any_number_of_rows(num_rows, heads):
    model = model_of(**heads).float()
    rows = (ROWS * 7)[:num_rows]
    expected, expected_logits = read(CachedLlama(llama_parts(model), native=False), rows, 12)
    got, logits = read(CachedLlama(llama_parts(model)), rows, 12)
    torch.testing.assert_close(got.last, expected.last, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-5)
    for row in range(num_rows):
        length = len(rows[row]) + 12
        start = int(expected.starts[row])
        for own, other in ((got.keys, expected.keys), (got.values, expected.values)):
            torch.testing.assert_close(
                own[:, row, :, start : start + length], other[:, row, :, start : start + length], rtol=0, atol=1e-5
            )


@needs_compiler
@pytest.mark.parametrize("width", [{}, {"dim": 104, "num_heads": 1, "num_kv_heads": 1}], ids=["8", "104"])
def test_bfloat16_is_as_near_to_float32_as_that_of_torch(width):
    model = model_of(**width)
    by_torch, native = (read(CachedLlama(llama_parts(model), native=native), ROWS, 12)[1] for native in (False, True))
    exact = read(CachedLlama(llama_parts(model.float()), native=False), ROWS, 12)[1]
    assert native.dtype == torch.float32
    assert 0 < (native - exact).abs().mean() <= 1.1 * (by_torch - exact).abs().mean()


@needs_compiler
def test_two_threads_compute_what_one_does():
    model, before = model_of(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        shared = read(CachedLlama(llama_parts(model)), ROWS, 12)[1]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(shared, read(CachedLlama(llama_parts(model)), ROWS, 12)[1])


def test_without_a_compiler_torch_does_the_work(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_library, "native_library", native_library.native_library.__wrapped__)
    source = tmp_path / "broken.cpp"
    source.write_text("this is no C++")
    caplog.set_level(logging.INFO)
    assert native_library.native_library(source) is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native_library.native_library(SOURCE) is None
    assert len(caplog.records) == 2 and not [one for one in tmp_path.rglob("*.so") if one.is_file()]


def test_what_the_step_does_not_cover_is_left_to_torch():
    assert NativeLlama.of(llama_parts(model_of().half())) is None


@needs_compiler
@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.1, 3),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.01, 0.99),
    min_p=st.none() | st.floats(0, 1),
)
def test_ids_are_drawn_as_in_torch(seed, temperature, top_k, top_p, min_p):
    sampling = Sampling(temperature, top_k, top_p, min_p)
    logits = torch.randn(1, 47, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, 5:9] = float("-inf")
    shares = sampling.candidates(logits)[0].double().softmax(dim=-1)[0]
    middles = (shares.cumsum(dim=0) - shares / 2)[shares > 1e-4].float()  # far from where rounding decides
    native = NativeLlama.of(llama_parts(model_of()))
    rows = logits.expand(len(middles), -1)
    assert native.choose(rows, sampling, middles).tolist() == sampling.choose(rows, middles).tolist()


@needs_compiler
@pytest.mark.parametrize("top_k", [1, 100, 256, 257])
def test_the_largest_of_many_logits_are_found_even_where_many_are_alike(top_k):
    logits = torch.randint(60, (3, 1500), generator=torch.Generator().manual_seed(0)) / 8
    logits[1, 40:] = float("-inf")
    uniform, sampling = torch.tensor([0.1, 0.5, 0.9]), Sampling(1.0, top_k=top_k)
    native = NativeLlama.of(llama_parts(model_of()))
    chosen = native.choose(logits, sampling, uniform)
    least = logits.topk(top_k).values[:, -1]
    assert (logits.gather(1, chosen[:, None])[:, 0] >= least).all()
    distinct = logits + torch.arange(1500) / 1e5
    assert torch.equal(native.choose(distinct, sampling, uniform), sampling.choose(distinct, uniform))


@needs_compiler
@given(seed=st.integers(0, 999), edge=st.sampled_from([0.0, 1 - 2**-24]), top_p=st.sampled_from([0.6, None]))
def test_a_draw_in_cpp_at_the_edge_is_a_candidate(seed, edge, top_p):
    sampling = Sampling(1.0, top_p=top_p, min_p=0.2)
    logits = torch.randn(5, 31, generator=torch.Generator().manual_seed(seed))
    logits[:, :3] = float("-inf")
    chosen = NativeLlama.of(llama_parts(model_of())).choose(logits, sampling, torch.full((5,), edge))
    kept, ids = sampling.candidates(logits)
    allowed = torch.full_like(logits, float("-inf")).scatter(1, ids, kept)
    assert allowed.gather(1, chosen.unsqueeze(1)).isfinite().all()
