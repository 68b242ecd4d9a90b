from dataclasses import replace

import pytest
import torch

from rebus.model.cached_rows import CachedRows
from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.guidance import Guidance
from rebus.model.language_model import LanguageModelConfig
from rebus.model.sampling import Sampling
from rebus.model.speculation import Speculation
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

NUM_CODES, NUM_IDS = 3, 4
VOCABULARY = Vocabulary(23, CodeLayout("grid", 12, (Stream("code", 7),), (3, 4)))


GENERATOR = torch.Generator().manual_seed(0)
LOGITS = [torch.randn(*[NUM_IDS] * place, NUM_IDS, generator=GENERATOR) for place in range(NUM_CODES + 1)]
"""A model whose next code depends on all codes before it."""


class Table(CachedRows):
    """What that model has read, and as hidden state of each code how many there are up to it, and which."""

    def __init__(self):
        self.codes, self.hidden = [], torch.tensor([[[0.0, *[-1] * NUM_CODES]]])

    def read(self, ids):
        rows = []
        for code in ids[0].tolist():
            self.codes.append(code)
            rows.append([float(len(self.codes)), *self.codes, *[-1.0] * (NUM_CODES - len(self.codes))])
        self.hidden = torch.tensor([rows])

    def forget(self, number):
        self.codes = self.codes[: len(self.codes) - number]


def mixed(hidden, first):
    rows = [row[1 : 1 + int(row[0])].int().tolist() for row in hidden[0]]
    assert [len(row) for row in rows] == [first + index for index in range(len(rows))]
    return torch.stack([LOGITS[len(row)][tuple(row)] for row in rows])


def drawn(window, number):
    """How often each row of codes was drawn, and codes per pass."""
    generator, counts, passes = torch.Generator().manual_seed(1), torch.zeros(NUM_IDS**NUM_CODES), 0
    for _ in range(number):
        table = Table()
        speculation = Speculation(table, mixed, Sampling(), generator, window)
        codes = speculation.draw([0] * NUM_CODES, 0)
        assert table.codes == codes  # all of them are read
        counts[sum(code * NUM_IDS**place for place, code in enumerate(reversed(codes)))] += 1
        passes += speculation.num_passes
    return counts, number * NUM_CODES / passes


def chi_squared(counts):
    joint = torch.ones(())
    for logits in LOGITS[:NUM_CODES]:
        joint = joint[..., None] * logits.softmax(-1)
    expected = joint.flatten() * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("window", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_codes_are_distributed_as_those_drawn_one_by_one(window):
    counts, codes_per_pass = drawn(window, 1500)
    assert chi_squared(counts) < 63 + 4 * (2 * 63) ** 0.5  # 64 rows of codes: the mean and 4 deviations
    assert codes_per_pass > 1.1


def test_the_test_would_see_a_wrong_rule(monkeypatch):
    monkeypatch.setattr(
        Speculation,
        "_kept",
        lambda self, guesses, said: [*(one for one, _ in guesses), int(said[len(guesses)].argmax())],
    )
    assert chi_squared(drawn(2, 800)[0]) > 150


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("guesses", [1, 4, 30])
def test_the_likeliest_codes_are_the_same(guesses, native):
    config = LanguageModelConfig(dim=48, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=61, max_positions=96)
    model = config.build(VOCABULARY, torch.Generator().manual_seed(0)).eval()
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.ndim > 1 else 1
    engine = Engine(model, VOCABULARY, native=native)
    asked = [
        Request(prompt=[1, 5, 6], others=((1,),), max_text_tokens=9, num_pictures=2, start_picture=True, seed=seed)
        for seed in range(3)
    ]
    plain = Decoding(text=Sampling(0.0), picture=Sampling(0.0), guidance=Guidance(scale=2.0, stop=0.8))
    for one in asked:
        expected = engine.generate([one], plain)
        assert engine.generate([one], replace(plain, guesses=guesses)) == expected
        assert len(set(expected[0].ids[1:13])) > 3


def test_a_number_of_guesses_that_cannot_be():
    with pytest.raises(ValueError, match="guesses must be at least 0, got -1"):
        Decoding(guesses=-1)
