import json
import runpy
import sys
from pathlib import Path

import pytest

from rebus.model.language_model import LanguageModelConfig

BENCH = Path(__file__).resolve().parent.parent / "bench" / "decode.py"
KEYS = {"cfg_b1_vs_hf", "cfg_b16_vs_hf", "cfg_b1_vs_batched_loop", "cfg_b16_vs_batched_loop", "cfg_overhead"}


@pytest.mark.slow
def test_the_bench_checks_the_codes_and_prints_every_figure(monkeypatch, capsys):
    bench = runpy.run_path(str(BENCH))
    bench["SIZES"]["tiny"] = LanguageModelConfig(dim=32, num_layers=1, num_heads=2, num_kv_heads=2, ffn_dim=64)
    monkeypatch.setattr(sys, "argv", ["decode.py", "--sizes", "tiny", "--repeats", "1", "--json"])
    bench["main"]()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) >= KEYS | {"roofline_share"}
    assert all(size["tiny"] > 0 for paths in figures.values() for size in paths.values())
