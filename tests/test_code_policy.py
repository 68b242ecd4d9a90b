import pytest
import torch

from rebus.model.engine import Engine
from rebus.model.language_model import LanguageModelConfig
from rebus.train.code_policy import PolicyConfig, code_rows, score_codes


@pytest.fixture(scope="module")
def model(vocabulary):
    config = LanguageModelConfig(dim=24, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=20, max_positions=64)
    model = config.build(vocabulary, torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # else all codes are about equally likely
    return model


@pytest.fixture(scope="module")
def asked(vocabulary):
    """Prompts of several lengths, each up to the first code, and a picture for each."""
    generator = torch.Generator().manual_seed(2)
    prompts = [[vocabulary.bos, *range(20, stop), vocabulary.begin_picture] for stop in (23, 29, 21)]
    codes = [
        [
            int(torch.randint(*vocabulary.code_range(place % 2), (1,), generator=generator))
            for place in range(vocabulary.num_codes)
        ]
        for _ in prompts
    ]
    return prompts, codes


def test_likelihoods_are_those_of_the_engine(model, vocabulary, asked):
    prompts, codes = asked
    scores = score_codes(model, vocabulary, code_rows([prompts], codes), PolicyConfig())
    expected = Engine(model, vocabulary).code_log_likelihoods(prompts, codes)
    torch.testing.assert_close(scores.log_likelihoods, expected, atol=1e-4, rtol=1e-4)
    assert (scores.entropies > 0).all() and scores.log_likelihoods.requires_grad


def test_temperature_and_guidance_are_those_that_codes_are_drawn_with(model, vocabulary, asked):
    prompts, codes = asked
    policy = PolicyConfig(temperature=0.6, guidance=1.5)
    nothing = [[vocabulary.bos, vocabulary.begin_picture]] * len(prompts)
    scores = score_codes(model, vocabulary, code_rows([prompts, nothing], codes), policy)
    for row, (prompt, drawn) in enumerate(zip(prompts, codes, strict=True)):
        for place, code in enumerate(drawn):
            start, stop = vocabulary.code_range(place % 2)
            logits = [
                model(torch.tensor([[*before, *drawn[:place]]])).logits[0, -1, start:stop]
                for before in (prompt, nothing[row])
            ]
            expected = ((1.5 * logits[0] - 0.5 * logits[1]) / 0.6).log_softmax(dim=0)
            torch.testing.assert_close(scores.log_likelihoods[row, place], expected[code - start], atol=1e-4, rtol=1e-4)
            entropy = torch.distributions.Categorical(logits=expected).entropy()
            torch.testing.assert_close(scores.entropies[row, place], entropy, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        PolicyConfig(temperature=0.0)
    with pytest.raises(ValueError, match="guidance must be at least 0"):
        PolicyConfig(guidance=-1.0)
