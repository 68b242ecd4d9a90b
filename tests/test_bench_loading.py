import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_bench_prints_every_figure(monkeypatch, capsys):
    bench = runpy.run_path(str(ROOT / "bench" / "loading.py"))
    monkeypatch.setattr(sys, "argv", ["loading.py", "--rounds", "1", "--seconds", "0.1", "--json"])
    bench["main"]()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(figures) == ["60 to 140", "60 to 400", "300 to 1000"]
    assert all(one["vs_datasets"] > 1 and one["vs_json_lines"] > 1 for one in figures.values())
