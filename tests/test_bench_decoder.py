import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench" / "decoder.py"


@pytest.mark.slow
def test_the_bench_prints_every_figure(monkeypatch, capsys):
    bench = runpy.run_path(str(BENCH))
    flags = ["decoder.py", "--limit", "6", "--rounds", "1", "--threads", "1", "--json"]
    monkeypatch.setattr(sys, "argv", flags)
    bench["main"]()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["speedup_vs_25_steps"] > 2 and 0 < figures["seconds_per_picture"] < 5
    assert all([*values] == ["1", "2", "4", "25"] for values in figures["quality_at_1_2_4_25"].values())
    assert figures["training_vs_plain_loop"] > 1 and figures["training_vs_uncached"] > 0.8
