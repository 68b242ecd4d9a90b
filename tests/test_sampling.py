import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rebus.model.sampling import Sampling


def warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The logits as ``generate`` of ``transformers`` filters them."""
    ids = torch.zeros(len(logits), 0, dtype=torch.int64)
    logits = TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_k is not None:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p is not None:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    if sampling.min_p is not None:
        logits = MinPLogitsWarper(sampling.min_p)(ids, logits)
    return logits


@given(
    seed=st.integers(0, 999),
    temperature=st.floats(0.1, 3),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.01, 0.99),
    min_p=st.none() | st.floats(0, 1),
)
def test_candidates_are_those_of_transformers(seed, temperature, top_k, top_p, min_p):
    sampling = Sampling(temperature, top_k, top_p, min_p)
    logits = torch.randn(3, 47, generator=torch.Generator().manual_seed(seed)) * 3
    kept, ids = sampling.candidates(logits)
    own = torch.full_like(logits, float("-inf")).scatter(1, ids, kept)
    torch.testing.assert_close(own, warped(logits, sampling))


def test_draws_follow_the_probabilities():
    sampling = Sampling(0.7, top_k=5)
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5, float("-inf"), 1.5]])
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    chosen = sampling.choose(logits.expand(100_000, -1), uniform)
    frequencies = torch.bincount(chosen, minlength=7) / 100_000
    torch.testing.assert_close(frequencies, warped(logits, sampling).softmax(-1)[0], rtol=0, atol=2e-5)


@given(seed=st.integers(0, 999), edge=st.sampled_from([0.0, 1 - 2**-24]), top_p=st.sampled_from([0.6, None]))
def test_a_draw_at_the_edge_is_a_candidate(seed, edge, top_p):
    sampling = Sampling(1.0, top_p=top_p, min_p=0.2)
    logits = torch.randn(5, 31, generator=torch.Generator().manual_seed(seed))
    chosen = sampling.choose(logits, torch.full((5,), edge))
    assert warped(logits, sampling).gather(1, chosen.unsqueeze(1)).isfinite().all()


def test_temperature_zero_takes_the_likeliest():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampling(0.0, top_k=3).choose(logits, torch.full((4,), 0.9)), logits.argmax(-1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-0.1,), "temperature must be at least 0 and finite, got -0.1"),
        ((float("nan"),), "temperature must be at least 0 and finite, got nan"),
        ((1.0, 0), "top_k must be at least 1, got 0"),
        ((1.0, None, 0.0), r"top_p must lie in \(0, 1\], got 0.0"),
        ((1.0, None, None, 1.5), r"min_p must lie in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_settings(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(*values)
