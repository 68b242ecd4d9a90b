"""The comparison of searches: what is compared draws as many codes as it is said to, and scores stand beside prices."""

import numpy as np
import pytest

from rebus.evaluation.arm_scores import arm_figures
from rebus.evaluation.arm_tables import markdown
from rebus.evaluation.search import SearchArm, main, plot, searches
from rebus.evaluation.trials import ArmsConfig, compare
from rebus.tokenizers.tokens import CodeLayout, Stream

GRID = CodeLayout("grid", 64, (Stream("codes", 9),), grid=(8, 8))
NESTED = CodeLayout("sequence", 64, (Stream("codes", 9),), prefix_decodable=True)
GRID_OF_9 = CodeLayout("grid", 9, (Stream("codes", 15),), grid=(3, 3))
"""That of the saved model of the tests."""


def positions(how, whole):
    """How many are drawn for a picture."""
    starts, stops = (0, *how.choose_at), [min(whole, place + how.ahead) for place in how.choose_at] + [whole]
    return how.drafts * sum(stop - start for start, stop in zip(starts, stops, strict=True))


@pytest.mark.parametrize("layout", [GRID, NESTED])
def test_a_beam_draws_as_much_as_best_of_and_a_lookahead_twice(layout):
    drawn = {name: positions(how, 64) / 64 for name, how in searches(layout, 16).items()}
    assert drawn == {
        **{f"best of {number}": number for number in (1, 2, 4, 8, 16)},
        **{f"beam of {number}": number for number in (4, 8, 16)},
        **{f"lookahead of {number}": 2 * number for number in (2, 4, 8)},
    }
    assert max(positions(how, 63) for how in searches(CodeLayout("grid", 63, GRID.streams, (9, 7)), 9).values()) == 504


def test_any_first_codes_are_chosen_from_early_and_a_grid_by_quarters():
    assert searches(NESTED, 8)["beam of 8"].choose_at == (1, 2, 4, 8, 16, 32)
    assert searches(GRID, 8)["beam of 8"].choose_at == (16, 32, 48)
    assert {how.kept for name, how in searches(GRID, 8).items() if name.startswith("beam")} == {1, 2}


def test_the_table_and_the_plot_tell_scores_and_prices(tmp_path):
    rng = np.random.default_rng(0)
    by_arm = {name: {"one_object": (rng.random((1, 9)) < 0.5).astype(float)} for name in searches(GRID, 4)}
    costs = {name: {arm: 10.0 + row for row, arm in enumerate(by_arm)} for name in ("codes", "seconds")}
    figures = {"judges": {"detector": arm_figures(by_arm)}}
    figures |= {f"{name}_per_picture": values for name, values in costs.items()}
    table = markdown(figures).splitlines()
    assert table[2].endswith("| gain | seeds | codes/picture | s/picture |")
    assert table[-1].startswith("| lookahead of 2 |") and table[-1].endswith("| 1 | 14 | 14.00 |")
    plot(figures, tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 5000


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="most_drafts must be at least 4, got 3"):
        searches(GRID, 3)
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--output", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.slow
def test_searches_are_judged_and_kept(blind_judge, saved_model, tmp_path):
    arms = {name: SearchArm(model=saved_model, how=how) for name, how in searches(GRID_OF_9, 4).items()}
    config = ArmsConfig(arms=arms, num_prompts=2, batch_size=2, output=tmp_path)
    judges, said = {"blind": blind_judge}, []
    figures = compare(config, judges, said.append)
    assert figures["codes_per_picture"] == {
        "best of 1": 9,
        "best of 2": 18,
        "best of 4": 36,
        "beam of 4": 36,
        "lookahead of 2": 36,
    }
    assert figures["paintings_per_picture"] == {**dict.fromkeys(arms, 0), "beam of 4": 12}
    assert figures["readings_per_picture"]["lookahead of 2"] == 6 and figures["readings_per_picture"]["best of 1"] == 0
    assert min(figures["seconds_per_picture"].values()) > 0
    number = len(said)
    assert compare(config, judges, said.append) == figures and len(said) == number
