import math
from itertools import product
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.regression import kendall_rank_corrcoef

from rebus.evaluation.agreement import agreement, kendall
from rebus.evaluation.benchmark import Marks, Outcome
from rebus.evaluation.figures import figures, score_of
from rebus.evaluation.intervals import bootstrap, wilson
from rebus.evaluation.paired_tests import NUM_FLIPS, mcnemar, sign_flip
from rebus.evaluation.report_table import markdown

FEW = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Intervals


def test_the_bootstrap_has_the_width_of_the_normal_interval_where_there_are_many_marks():
    marks = torch.randn(1500, generator=generator(1), dtype=torch.double) * 3 + 5
    found = bootstrap(marks.tolist(), generator())
    reach = 1.96 * marks.std().item() / math.sqrt(1500)
    assert found.score == pytest.approx(marks.mean().item())
    assert found.low == pytest.approx(found.score - reach, abs=0.08 * reach)
    assert found.high == pytest.approx(found.score + reach, abs=0.08 * reach)


def test_the_bootstrap_of_two_marks_has_known_ends():
    # The mean of a resample is 0, 1/2 or 1, with probabilities 1/4, 1/2 and 1/4.
    found = bootstrap([0.0, 1.0], generator())
    assert (found.score, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 2)
    assert bootstrap([3.5] * 4, generator()).low == 3.5


def test_the_bootstrap_is_that_of_its_seed():
    marks = [0.1, 0.7, 0.75, 0.2, 0.9, 0.33, 0.51]
    assert bootstrap(marks, generator()) == bootstrap(marks, generator())
    assert bootstrap(marks, generator()) != bootstrap(marks, generator(1))


def test_right_or_wrong_has_the_interval_of_wilson_and_all_else_the_bootstrap():
    def of(*marks, kind="share"):
        each = {str(row): mark for row, mark in enumerate(marks)}
        return score_of(Marks(each=each, kind=kind), generator())

    assert of(1.0, 1.0, 1.0)["interval"] == "wilson" and of(1.0, 1.0, 1.0)["low"] == wilson([1.0] * 3).low > 0.4
    assert of(0.5)["interval"] == "wilson" and of(0.5)["high"] > 0.9
    assert of(1.0, 0.5)["interval"] == "bootstrap" == of(1.0, 0.0, kind="lower")["interval"]
    assert of(2.0, 7.0, kind="lower") == {
        **{"score": 4.5, "low": 2.0, "high": 7.0, "n": 2},
        **{"interval": "bootstrap", "failed": 0, "kind": "lower"},
    }


def test_figures_lie_in_their_groups_and_an_interval_knows_no_other_score():
    marks = {"loss": Marks(each={"a": 1.5, "b": 4.0}, kind="lower"), "by/kind/deep": Marks(each={}, failed={"a": "no"})}
    found = figures({"text": Outcome(marks=marks, others={"by/f1": 0.25})}, seed=3)
    assert found["by"]["f1"] == 0.25 and found["others"] == ["by/f1"]
    made = {"model": "somewhere", "model_hash": "0123", "seed": 0, "seconds": 1.0}
    assert "\nby/f1: 0.25\n" in markdown(found | made)
    assert found["by"]["kind/deep"]["failed"] == 1
    assert found["failures"] == {"by/kind/deep": {"no": 1}}
    again = figures(
        {"first": Outcome(marks={"other": Marks(each={"a": 0.5, "b": 0.1})}), "text": Outcome(marks=marks)}, 3
    )
    assert again["loss"] == found["loss"]
    with pytest.raises(AssertionError, match="loss is a score, and so no group"):
        figures({"text": Outcome(marks={"loss": marks["loss"], "loss/code": marks["loss"]})}, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"each": {"a": 1.5}}, r"marks must be in \[0, 1\], got 1.5 for a"),
        ({"each": {"a": math.nan}, "kind": "higher"}, "marks must be finite, got nan for a"),
        ({"each": {"a": 1.0}, "failed": {"a": "why"}}, "items must be either marked or failed, got both for a"),
    ],
)
def test_marks_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Marks(**fields)


def test_no_marks_have_no_interval():
    with pytest.raises(ValueError, match="marks must be at least one, got none"):
        bootstrap([], generator())


# Agreement of judges


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
@settings(max_examples=12, deadline=None)
def test_kendall_is_that_of_torchmetrics(pairs):
    first, second = ([float(one) for one in side] for side in zip(*pairs, strict=True))
    found = kendall(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(kendall_rank_corrcoef(torch.tensor(first), torch.tensor(second)).item(), abs=1e-5)


def test_kendall_of_right_or_wrong_is_their_correlation():
    first, second = (torch.randint(2, (40,), generator=generator(seed)).double() for seed in (1, 2))
    expected = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert kendall(first.tolist(), second.tolist()) == pytest.approx(expected)
    with pytest.raises(ValueError, match="lists must be equally long, got 1 and 2"):
        kendall([1.0], [1.0, 2.0])


def test_judges_agree_on_the_items_that_both_could_mark():
    assert agreement({"a": 1.0, "b": 0.0, "c": 1.0}, {"b": 0.0, "a": 0.0, "d": 1.0}) == {
        **{"same": 0.5, "kendall": None, "n": 2}
    }
    assert agreement({"a": 1.0}, {}) == {"same": None, "kendall": None, "n": 0}


# Paired tests


def test_mcnemar_is_the_binomial_test_of_a_fair_coin():
    # Sums of binomials over 2^n, by hand; of many tosses, the normal distribution.
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(4, 4) == 1.0 == mcnemar(0, 0)
    assert mcnemar(2, 12) == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    with_continuity = (530 - 470 - 1) / math.sqrt(1000)
    assert mcnemar(470, 530) == pytest.approx(math.erfc(with_continuity / math.sqrt(2)), rel=0.01)


@given(FEW)
@settings(max_examples=20, deadline=None)
def test_sign_flip_tries_all_signs_of_few_differences(differences):
    sums = [
        sum(sign * one for sign, one in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    expected = fmean(abs(one) >= abs(sum(differences)) for one in sums)
    assert sign_flip(differences, generator()) == pytest.approx(expected)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_of_right_or_wrong_sign_flip_is_mcnemar(only_first, only_second, same):
    differences = [-1.0] * only_first + [1.0] * only_second + [0.0] * same
    assert sign_flip(differences, generator()) == pytest.approx(mcnemar(only_first, only_second))


def test_random_signs_come_near_the_exact_test_and_never_to_zero():
    # 14 differences are the fewest whose signs are drawn: of 1 they are tosses of a coin.
    drawn = sign_flip([1.0] * 11 + [-1.0] * 3, generator())
    assert drawn == pytest.approx(mcnemar(3, 11), abs=4 * math.sqrt(mcnemar(3, 11) / NUM_FLIPS))
    assert sign_flip([0.1] * 60, generator()) == 1 / (1 + NUM_FLIPS)
    values = torch.randn(300, generator=generator(5), dtype=torch.double)
    level = values / values.std() + 0.1  # 1.73 standard errors from no difference
    shift = level.mean().abs().item() * math.sqrt(300) / level.square().mean().sqrt().item()
    assert sign_flip(level.tolist(), generator()) == pytest.approx(math.erfc(shift / math.sqrt(2)), abs=0.02)
