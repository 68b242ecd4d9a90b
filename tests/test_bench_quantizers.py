import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench" / "quantizers.py"
RATIOS = ("search_vs_library", "search_vs_cdist", "search_vs_expanded", "step_vs_library")


@pytest.mark.slow
def test_the_bench_prints_every_figure(monkeypatch, capsys):
    bench = runpy.run_path(str(BENCH))
    bench["SIZES"]["small"] = (1024, 2048, 16)
    monkeypatch.setattr(sys, "argv", ["quantizers.py", "--sizes", "small", "--rounds", "3", "--json"])
    bench["main"]()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["same_index"]["small"] >= 0.999
    assert all(figures[name]["small"] > 1 for name in RATIOS)
    assert figures["milliseconds"]["small"].keys() == figures["peak_mib"]["small"].keys()
    assert figures["peak_mib"]["small"]["library"] > 8, "scores of all vectors and codes"
