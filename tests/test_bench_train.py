import json
import runpy
import sys
from pathlib import Path

import pytest

from rebus.model.language_model import LanguageModelConfig

BENCH = Path(__file__).resolve().parent.parent / "bench" / "train.py"


@pytest.mark.slow
@pytest.mark.timeout(600)  # much of it is torch.compile
@pytest.mark.filterwarnings("default")  # torch.compile has warnings of its own
def test_the_bench_prints_every_figure(monkeypatch, capsys):
    bench = runpy.run_path(str(BENCH))
    bench["SIZES"]["tiny"] = LanguageModelConfig(dim=32, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=64)
    monkeypatch.setattr(sys, "argv", ["train.py", "--sizes", "tiny", "--rounds", "1", "--json"])
    bench["main"]()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) >= {"vs_naive", "vs_strong", "cross_entropy", "cross_entropy_vs_bfloat16", "mfu"}
    assert all(sizes["tiny"] >= 0 for sizes in figures.values())
    assert figures["vs_naive"]["tiny"] > 1 and figures["mfu"]["tiny"] < 1
