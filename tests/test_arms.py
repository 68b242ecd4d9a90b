"""The arms of an experiment: statistics against what is known of them, and a comparison from folders to table."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from rebus.evaluation.arm_scores import arm_figures, gains, scores
from rebus.evaluation.arm_tables import markdown, plot
from rebus.evaluation.arms import ArmConfig, ArmsConfig, compare, read_arms


def marks(share, shape, seed=0):
    return (np.random.default_rng(seed).random(shape) < share).astype(float)


def test_an_interval_of_one_seed_is_that_of_a_share():
    right = marks(0.3, (1, 400))
    one = scores({"one": right})["one"]
    reach = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert one.score == pytest.approx(right.mean()) and one.n == 400 and one.failed == 0
    assert one.low == pytest.approx(right.mean() - reach, abs=0.01)
    assert one.high == pytest.approx(right.mean() + reach, abs=0.01)


def test_seeds_that_differ_widen_the_interval_and_more_prompts_do_not_help():
    right = np.concatenate([np.ones((1, 60)), np.zeros((1, 60)), np.ones((1, 60))])
    one = scores({"one": right})["one"]
    assert one.score == pytest.approx(2 / 3) and one.low <= 1 / 3 and one.high == 1


def test_a_gain_is_measured_on_the_same_prompts():
    hard = marks(0.5, (1, 60))
    better = hard.copy()
    better[0, np.flatnonzero(hard[0] == 0)[:12]] = 1
    one = gains({"one": better}, {"one": hard})["one"]
    assert one.score == pytest.approx(0.2) and 0.09 < one.low < 0.2 < one.high < 0.31
    same = gains({"one": hard}, {"one": hard})["mean"]
    assert (same.score, same.low, same.high) == (0, 0, 0)


def test_the_mean_is_that_of_the_tasks_and_a_failed_picture_is_none_of_them():
    some = {"one": np.array([[1.0] * 20 + [np.nan] + [1.0] * 9]), "two": np.zeros((1, 30))}
    found = scores(some)
    assert found["mean"].score == 0.5 and found["one"].score == 1
    assert (found["one"].n, found["one"].failed, found["mean"].n) == (29, 1, 59)
    with pytest.raises(ValueError, match="one must have some picture that was judged, got none"):
        scores({"one": np.full((1, 3), np.nan)})


def test_the_table_names_arms_tasks_and_gains_over_the_first(tmp_path):
    by_arm = {"SFT": {"one_object": np.zeros((1, 9))}, "RL": {"one_object": np.ones((3, 9))}}
    figures = {"judges": {"detector": arm_figures(by_arm)}, "seconds_per_picture": {"SFT": 0.25, "RL": 0.5}}
    table = markdown(figures)
    assert "| RL | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) | +1.00 (+1.00 to +1.00) | 3 | 0.50 |" in table
    plot(figures, tmp_path / "arms.png")
    assert (tmp_path / "arms.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "must be a JSON file"),
        ("{}", "at least one arm"),
        ('{"RL": 8}', "settings of RL must be among models, .*, got 8"),
        ('{"RL": {"best_of": "8"}}', "settings of RL must be numbers, got {'best_of': '8'}"),
        ('{"RL": {"models": "runs/rl"}}', "models of RL must be a list of folders, got runs/rl"),
        ('{"RL": {"models": []}}', "models must be at least one"),
        ('{"RL": {"drafts": 2}}', "settings of RL must be among models, best_of, guidance, temperature"),
    ],
)
def test_arms_that_cannot_be_read_are_refused(tmp_path, text, wanted):
    (tmp_path / "arms.json").write_text(text)
    with pytest.raises(ValueError, match=wanted):
        read_arms(tmp_path / "arms.json")


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_stood_and_refuses_the_marks_of_others(blind_judge, saved_model, tmp_path):
    judges = {"blind": blind_judge}
    arms = {
        "one": ArmConfig(models=(saved_model,)),
        "two": ArmConfig(models=(saved_model,), best_of=2),
    }
    config = ArmsConfig(arms=arms, num_prompts=3, batch_size=2, output=tmp_path)
    said = []
    figures = compare(config, judges, said.append)
    assert figures["judges"]["blind"]["two"]["scores"]["one_object"]["n"] == 3 and len(said) == 12
    assert figures["judges"]["blind"]["one"]["scores"]["sign_text"]["score"] == 0
    assert compare(config, judges, said.append) == figures and len(said) == 12
    judged = json.loads((tmp_path / "two" / "0" / "judged.json").read_text())
    (tmp_path / "two" / "0" / "judged.json").write_text(json.dumps({**judged, "settings": {}}))
    with pytest.raises(ValueError, match="choose another output"):
        compare(config, judges, said.append)
    lost = replace(config, arms={**arms, "three": ArmConfig(models=(tmp_path / "none",))}, output=tmp_path / "other")
    with pytest.raises(ValueError, match="none"):
        compare(lost, judges, said.append)
    assert len(said) == 12  # nothing was drawn
