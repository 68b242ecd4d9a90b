import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rebus.evaluation import compare_models
from rebus.evaluation.benchmark import Marks, Outcome, Shown
from rebus.evaluation.caption_benchmark import CaptionBenchmark
from rebus.evaluation.compare_models import difference_sheet
from rebus.evaluation.drawing_benchmark import DrawingBenchmark
from rebus.evaluation.model_comparison import compare, differences, judges_alike
from rebus.evaluation.report_folder import Done, Evaluated, ReportFolder


def right(*passed):
    """Marks of as many items."""
    return Marks(each={f"one/{row}": float(one) for row, one in enumerate(passed)})


def shown(*passed, grey=128):
    picture = np.full((40, 40, 3), grey, np.uint8)
    return {
        f"one/{row}": Shown(prompt=f"thing {row}", picture=picture, passed=one, seen="")
        for row, one in enumerate(passed)
    }


def write(folder, passed, facts=(), judges=("11", "22"), number=80, model_hash="0"):
    """A report on drawings, and on captions if there are facts."""
    drawn = {"one_object": right(*passed), "judge_ceiling/one_object": right(*passed)}
    if len(judges) == 2:
        drawn["second_judge/one_object"] = right(*passed[::-1])
    kept = ReportFolder(folder, Evaluated(model_hash=model_hash, dtype="float32", seed=0, judges=judges))
    kept.save(DrawingBenchmark(number=number), Done(Outcome(marks=drawn, shown=shown(*passed)), 1.0))
    if facts:
        kept.save(CaptionBenchmark(), Done(Outcome(marks={"caption_facts": right(*facts)}), 1.0))
    benchmarks = {"drawing": {}} | ({"captions": {}} if facts else {})
    (folder / "report.json").write_text(json.dumps({"benchmarks": benchmarks}))
    return folder


def test_only_items_of_both_are_compared():
    first, second = right(True, True, False, True), right(True, False)
    found = compare(first, second, seed=0)
    assert (found.first, found.second, found.difference, found.n) == (1.0, 0.5, -0.5, 2)
    assert (found.only_first, found.only_second, found.test, found.p) == (1, 0, "mcnemar", 1.0)
    assert (found.low, found.high) == (-1.0, 0.0)
    with pytest.raises(ValueError, match="marks must have an item in common, got none"):
        compare(first, Marks(each={"two/0": 1.0}), seed=0)


def test_of_losses_the_lower_is_better():
    first = Marks(each={"a": 2.0, "b": 3.0, "c": 1.0}, kind="lower")
    found = compare(first, replace(first, each={"a": 1.5, "b": 2.75, "c": 1.0}), seed=0)
    assert (found.only_first, found.only_second, found.difference) == (0, 2, -0.25)
    assert (found.test, found.p) == ("sign_flip", 0.5)


def test_whether_both_judges_prefer_the_same_model():
    def marks(first, second):
        return {"a": right(first), "second_judge/a": right(second), "judge_ceiling/a": right(True), "b": right(True)}

    found = differences(marks(False, False), marks(True, True), seed=0)
    assert list(found) == ["a", "second_judge/a", "b"] and judges_alike(found) == {"alike": 1, "n": 1}
    assert judges_alike(differences(marks(False, True), marks(True, True), seed=0)) == {"alike": 0, "n": 1}
    assert judges_alike({"b": found["b"]}) is None


def test_the_sheet_has_both_drawings_of_prompts_that_only_one_got_right():
    first, second = shown(True, True, False, None, grey=10), shown(True, False, True, True, grey=200)
    sheet = np.asarray(difference_sheet(first, second))
    assert sheet.shape[:2] == (40 + 20 + 66, 8 * 60)
    cells = sheet[8:48].reshape(40, 8, 60, 3)[:, :, 8:48]
    assert [set(cell.flat) for cell in cells.transpose(1, 0, 2, 3)] == [{10}, {200}, {10}, {200}] + [{255}] * 4
    frames = sheet[6, 20::60].astype(int)[:4]
    assert [green > red for red, green, _ in frames] == [True, False, False, True]  # lost, then gained
    assert difference_sheet(first, first) is None


def test_the_command_compares_two_reports(tmp_path, capsys):
    one = write(tmp_path / "one", [True] * 8 + [False] * 2, facts=[0.5, 0.25, 1.0])
    other = write(tmp_path / "other", [True] * 2 + [False] * 8, facts=[0.75, 0.5, 1.0], number=10, model_hash="1")
    output = tmp_path / "both"
    compare_models.main(["--first", str(one), "--second", str(other), "--output", str(output), "--json"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found == json.loads((output / "differences.json").read_text())
    assert list(found["scores"]) == ["one_object", "second_judge/one_object", "caption_facts"]
    assert found["scores"]["one_object"]["p"] == pytest.approx(2 / 2**6)
    assert found["scores"]["caption_facts"]["difference"] == pytest.approx(0.5 / 3)
    assert found["only_first"] == [f"drawing/one/{row}" for row in range(2, 8)] and found["only_second"] == []
    assert found["judges_alike"] == {"alike": 1, "n": 1}
    text = (output / "differences.md").read_text()
    assert text in printed and "| one_object | 0.800 | 0.200 | -0.600 | " in text
    assert "Both judges prefer the same model in 1 of 1 scores." in text
    assert "Drawings that only the first got right: 6; only the second: 0." in text
    with Image.open(output / "differences.png") as sheet:
        assert sheet.height == 2 * (40 + 20 + 66)


def test_reports_that_cannot_be_compared_are_one_line_and_exit_2(tmp_path, capsys):
    one = write(tmp_path / "one", [True])

    def refusal(other, *flags):
        with pytest.raises(SystemExit, match="2"):
            compare_models.main(["--first", str(one), "--second", str(other), *flags])
        return capsys.readouterr().err

    assert "must be a folder that rebus.evaluation.report --output wrote, got no report.json" in refusal(tmp_path)
    other = write(tmp_path / "other", [True], judges=("33",))
    assert "drawing: both reports must be of the same judges, got 11 and 33" in refusal(other)
    assert "seed must be at least 0, got -1" in refusal(other, "--seed", "-1")
    assert "--output must be a folder, got the file" in refusal(other, "--output", __file__)
    (other / "report.json").write_text('{"benchmarks": {"captions": {}}}')
    assert "captions.json must be a file of a report" in refusal(other)
    write(other, [True], facts=[0.5])
    (other / "report.json").write_text('{"benchmarks": {"captions": {}}}')
    assert "both reports must have a benchmark in common, got drawing and captions" in refusal(other)
    (other / "report.json").write_text("{}")
    assert "must say which benchmarks were run, got None" in refusal(other)


def test_other_fields_of_a_benchmark_make_other_items(tmp_path):
    one, other = (write(tmp_path / name, [True]) for name in ("one", "other"))
    file = other / "drawing.json"
    values = json.loads(file.read_text())
    values["made_with"]["benchmark"]["images_per_prompt"] = 4
    file.write_text(json.dumps(values))
    first, second = compare_models.ReadReport.read(one), compare_models.ReadReport.read(other)
    with pytest.raises(ValueError, match="drawing: both reports must be of the same items"):
        first.check_comparable(second)
