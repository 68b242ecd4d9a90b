import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rebus.model import matrices
from rebus.model.engine import Engine
from rebus.model.language_model import LanguageModelConfig
from rebus.model.matrices import int8_matrix, packed_matrix, plain_matrix
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    biased=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_packed_matrix_multiplies_as_the_matrix_does(rows, inputs, outputs, biased, seed):
    weight, bias = drawn(outputs, inputs, seed=seed), drawn(outputs, seed=seed + 1) if biased else None
    given_rows = drawn(rows, 1, inputs, seed=seed + 2)
    expected = plain_matrix(weight, bias)(given_rows)
    assert torch.equal(expected, F.linear(given_rows, weight, bias))
    torch.testing.assert_close(packed_matrix(weight, bias)(given_rows), expected, rtol=0, atol=1e-4)
    low = packed_matrix(weight.bfloat16(), None if bias is None else bias.bfloat16())(given_rows.bfloat16())
    assert low.dtype == torch.bfloat16 and low.shape == expected.shape
    torch.testing.assert_close(low.float(), expected, rtol=0.03, atol=0.03 * inputs**0.5)


@given(rows=st.integers(1, 9), inputs=st.integers(1, 70), outputs=st.integers(1, 70), seed=st.integers(0, 9))
def test_eight_bits_err_by_half_a_step_of_each_weight_at_most(rows, inputs, outputs, seed):
    weight, bias, given_rows = drawn(outputs, inputs, seed=seed), drawn(outputs), drawn(rows, 1, inputs, seed=seed + 2)
    error = int8_matrix(weight, bias)(given_rows) - F.linear(given_rows, weight, bias)
    half_steps = weight.abs().amax(1) / 127 / 2
    assert (error.abs() <= 1.01 * half_steps * given_rows.abs().sum(-1, keepdim=True) + 1e-5).all()
    low = int8_matrix(weight.bfloat16())(given_rows.bfloat16()).float()
    torch.testing.assert_close(low, F.linear(given_rows, weight), rtol=0.03, atol=0.05 * inputs**0.5)
    assert int8_matrix(torch.zeros(3, 5))(torch.ones(2, 5)).eq(0).all()


def test_eight_bits_are_for_a_cpu():
    with pytest.raises(ValueError, match="int8 must be on a CPU, got meta"):
        int8_matrix(torch.ones(3, 5, device="meta"))


def test_elsewhere_a_matrix_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(matrices, "_packs", lambda dtype: False)
    weight, given_rows = drawn(7, 5), drawn(3, 5)
    assert torch.equal(packed_matrix(weight)(given_rows), F.linear(given_rows, weight))
    assert packed_matrix(weight.to("meta"))(given_rows.to("meta")).device.type == "meta"


def test_an_engine_of_eight_bits_says_nearly_what_the_model_does():
    vocabulary = Vocabulary(23, CodeLayout("grid", 6, (Stream("code", 17),), (2, 3)))
    config = LanguageModelConfig(dim=48, num_layers=3, num_heads=2, num_kv_heads=1, ffn_dim=64, max_positions=64)
    model = config.build(vocabulary, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1
    expected = model(torch.tensor([[1, 5, 9, 11]])).logits[:, -1]
    engine = Engine(model, vocabulary, int8=True)
    with torch.inference_mode():
        cache = engine.body.start([[1, 5, 9, 11]], 8)
        got = engine.body.logits(cache.last, 0, vocabulary.size)
    assert not cache.is_native
    assert 0 < (got - expected).abs().max() < 0.05 * expected.std()
