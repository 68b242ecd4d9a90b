import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench" / "rl.py"


@pytest.mark.slow
def test_the_bench_holds_the_codes_against_the_engines_and_prints_every_figure(monkeypatch, capsys):
    bench = runpy.run_path(str(BENCH))
    flags = ["rl.py", "--pictures", "8", "--rounds", "1", "--workers", "0", "--json"]
    monkeypatch.setattr(sys, "argv", flags)
    bench["main"]()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < figures["reward_share"] < 1 and figures["rollout_vs_engine"] > 0
    parts = [figures[f"{part}_seconds"] for part in ("draw", "paint", "reward", "likelihood", "update")]
    assert min(parts) > 0 and sum(parts) <= figures["step_seconds"]
    assert figures["learned_from"] == 1  # at least one group
