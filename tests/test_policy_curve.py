"""The judged score of a policy while it learns, beside its reward."""

import json

import pytest

from rebus.evaluation.policy_curve import arms_of, main, plot, policies, rewards
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel, file_hash


@pytest.fixture
def runs(exports, tmp_path):
    """Two runs, of which the second goes further."""
    found = [tmp_path / name for name in ("first", "second")]
    for number, run in enumerate(found):
        (run / "policies").mkdir(parents=True)
        for updates in (4, 8, 12)[: 2 + number]:
            (run / "policies" / f"{updates:06}").symlink_to(exports / "language_model")
        lines = [{"step": 4, "loss": 1.0}, {"step": 4, "validation/reward": 0.5}, {"step": 8, "validation/reward": 0.7}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


def test_policies_and_rewards_are_found_by_updates(runs, tmp_path):
    assert list(policies(runs[1])) == [4, 8, 12]
    assert rewards(runs[0]) == {4: 0.5, 8: 0.7}
    with pytest.raises(ValueError, match="must be a run of rebus.train.rl with --keep_policies true"):
        policies(tmp_path)
    with pytest.raises(ValueError, match="must hold metrics.jsonl"):
        rewards(tmp_path)


def test_each_policy_draws_with_the_other_parts_of_the_model(runs, saved_model, exports, tmp_path):
    model = SavedModel.open(saved_model)
    arms = arms_of(runs, model, tmp_path / "curve")
    assert {name: len(arm.models) for name, arm in arms.items()} == {"0": 1, "4": 2, "8": 2}
    made = SavedModel.open(arms["8"].models[1])
    weights = exports / "language_model" / "model.safetensors"
    assert made.weights == {**model.weights, "language_model": file_hash(weights)} != model.weights
    assert Rebus.load(made.folder).draw("a cat")[0].image.size == (24, 24)


def test_a_plot_has_judges_and_runs(tmp_path):
    estimates = {str(place): {"score": 0.5, "low": 0.4, "high": 0.7} for place in (0, 4)}
    plot({"detector": estimates}, [{4: 0.5, 8: 0.7}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_a_run_without_policies_is_refused_in_one_line(saved_model, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match="2"):
        main(["--runs", str(tmp_path), "--model", str(saved_model), "--output", str(tmp_path / "curve")])
    assert "got no policies in it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_curve_goes_on_where_it_stood(blind_judge, runs, saved_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rebus.evaluation.policy_curve.shipped_judges", lambda: {"blind": blind_judge})
    flags = ["--runs", *map(str, runs), "--model", str(saved_model), "--num_prompts", "2", "--output"]
    main([*flags, str(tmp_path / "curve")])
    first = json.loads((tmp_path / "curve" / "curve.json").read_text())
    assert first["judged"]["blind"]["8"]["n"] == 2 * 6 * 2 and first["rewards"] == [{"4": 0.5, "8": 0.7}] * 2
    told = capsys.readouterr().out
    assert "8 updates: judged 0.000 by the blind; rewards 0.700, 0.700" in told
    main([*flags, str(tmp_path / "curve")])
    assert json.loads((tmp_path / "curve" / "curve.json").read_text()) == first
