import json
from dataclasses import asdict

import pytest

from rebus.evaluation import compare_tokenizers
from rebus.evaluation.compare_tokenizers import Budget, Trial
from rebus.evaluation.comparison_table import COLUMNS, language_bits, markdown, plot
from rebus.evaluation.drawing_benchmark import DRAWING_TASKS


def result(recipe="llamagen", bits=768.0, **changes):
    score = {"score": 0.5, "low": 0.4, "high": 0.6, "n": 8}
    return {
        "recipe": recipe,
        "budget": asdict(Budget()),
        "num_codes": bits / 12,
        "bits": bits,
        "rebuilt": {
            "psnr_db": 20.0 + bits / 1000,
            "ssim": 0.8,
            "perceptual": 0.3,
            "codes_in_use": {"codes_0": 0.91, "codes_1": 0.5},
            "perplexity": {"codes_0": 300.0, "codes_1": 100.0},
            "probe_positions": score,
            "encoded_per_second": 30.0,
            "decoded_per_second": 40.0,
        },
        "statistics": {"codes_0": {"zipf_exponent": 0.9}},
        "language_loss": 0.6931471805599453,
        "report": {**(drawn := dict.fromkeys(DRAWING_TASKS, score)), "vqa": score, "rebuilt_ceiling": drawn},
        "seconds": {"tokenizer": 60.0, "decoder": 30.0, "pretrain": 30.0},
        **changes,
    }


def test_the_table_has_a_row_for_each_result_and_the_fewest_bits_first():
    lines = markdown([result("b", 3072.0), result("a", 768.0)]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| a", "| b"]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert "| 50% | 200 |" in lines[2] and "| 2.0 |" in lines[2]  # the stream used least, the mean, the minutes


def test_the_language_model_bits_are_those_of_all_codes_of_a_picture():
    assert language_bits(result(bits=768.0)) == pytest.approx(64)  # ln 2 a code is one bit


def test_the_plot_is_drawn(tmp_path):
    plot([result("a", 768.0), result("b", 3072.0)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_what_is_done_is_not_done_again_and_another_budget_is_refused(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result()))
    assert Trial("llamagen", tmp_path, Budget()).result() == result()
    with pytest.raises(ValueError, match="budget must be that of .*result.json"):
        Trial("llamagen", tmp_path, Budget(limit=7)).result()


def test_a_stage_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)llamagen: python -m json.tool --bogus must succeed, got:.*bogus"):
        Trial("llamagen", tmp_path, Budget())._run("json.tool", ["--bogus"])


def test_bad_flags_are_one_line_and_exit_2(capsys, tmp_path):
    for flags, message in (
        (["--recipes", "llamagen,nonsense"], "got nonsense"),
        (["--limit", "0"], "limit must be at least 1, got 0"),
        (["--table", "nowhere/table.md"], "--table must be a file in a folder that exists, got nowhere/table.md"),
    ):
        with pytest.raises(SystemExit, match="2"):
            compare_tokenizers.main([*flags, "--output", str(tmp_path)])
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recipe_goes_through_all_stages_and_its_table_is_written(tmp_path, capsys):
    small = [f"--{name}=2" for name in asdict(Budget())]
    table, picture = tmp_path / "table.md", tmp_path / "plot.png"
    where = ["--output", str(tmp_path / "runs"), "--table", str(table), "--plot", str(picture)]
    compare_tokenizers.main(["--recipes", "titok", *small, *where, "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["recipes"]) == {"titok"} and picture.stat().st_size > 1000
    assert table.read_text().count("\n") == 3
    for figures in told["recipes"].values():
        assert figures["bits"] > 0 and figures["language_loss"] > 0 and 0 < figures["rebuilt"]["psnr_db"] < 40
