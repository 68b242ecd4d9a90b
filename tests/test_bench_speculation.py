import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_bench_prints_every_figure(monkeypatch, capsys):
    bench = runpy.run_path(str(ROOT / "bench" / "speculation.py"))
    monkeypatch.setattr(
        sys, "argv", ["speculation.py", "--model", str(ROOT / "assets" / "mini"), "--number", "1", "--json"]
    )
    bench["main"]()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"codes_per_pass", "speedup_torch"} <= set(figures)
    assert all(list(values) == ["2", "4", "8", "16"] for values in figures.values())
    assert all(1 < value <= 64 for value in figures["codes_per_pass"].values())
