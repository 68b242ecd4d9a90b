"""Stage configs from presets, files and flags."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from rebus.train.command_line import dumps, load
from rebus.train.config import CosineFall, OptimConfig, RunConfig, parse


@dataclass(frozen=True, kw_only=True)
class LookupConfig:
    """Codes from a table."""

    size: int = 5
    """Rows of the table, 100% of them."""


@dataclass(frozen=True, kw_only=True)
class HashConfig:
    """Codes from a hash, with the same key as a table."""

    size: int = 7
    """Values of the hash."""


@dataclass(frozen=True, kw_only=True)
class LevelsConfig:
    """Codes from rounding."""

    levels: tuple[int, ...] = (3, 4)
    """Levels of each channel."""


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """A part of several."""

    name: str
    """What it is called."""
    codes: LookupConfig | HashConfig
    """Where its codes come from."""


@dataclass(frozen=True, kw_only=True)
class CoderConfig:
    """A coder."""

    dim: int = 3
    """Width."""
    kind: Literal["free", "causal"] = "free"
    """Order."""
    codes: LookupConfig | HashConfig | LevelsConfig = LevelsConfig()
    """Where codes come from."""
    extra: LookupConfig | PartConfig | None = None
    """A second table."""
    parts: tuple[PartConfig, ...] = ()
    """More tables."""


@dataclass(frozen=True, kw_only=True)
class DrawingStageConfig:
    """A whole training."""

    run: RunConfig
    """Steps and folders."""
    optim: OptimConfig
    """Learning rate."""
    coder: CoderConfig = CoderConfig()
    """The model."""


def mini() -> DrawingStageConfig:
    """The shipped one.

    Only the first line is shown.
    """
    return DrawingStageConfig(
        run=RunConfig(output=Path("runs/drawing"), steps=10, batch_size=4),
        optim=OptimConfig(lr=1e-3),
        coder=CoderConfig(codes=LookupConfig(size=11)),
    )


def tiny() -> DrawingStageConfig:
    """One for tests."""
    return replace(mini(), optim=OptimConfig(lr=1e-5))


PRESETS = {"mini": mini, "tiny": tiny}


def config_of(*argv: str) -> DrawingStageConfig:
    return parse(PRESETS, list(argv), "Draws.")


def with_coder(**changes: object) -> DrawingStageConfig:
    return replace(mini(), coder=replace(mini().coder, **changes))


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        config_of(*argv)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1, "one line"
    return error.strip().split(": ", 1)[1]


def test_first_preset_is_the_default() -> None:
    assert config_of() == mini()
    assert config_of("--preset", "tiny") == tiny()


def test_flag_beats_file_beats_preset(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("optim: {lr: 3e-4}\nrun: {steps: 20, seed: 5}\n")
    config = config_of("--preset", "tiny", "--config", str(file), "--run.steps", "30")
    assert (config.optim.lr, config.run.steps, config.run.seed, config.run.batch_size) == (3e-4, 30, 5, 4)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--coder.codes.size", "12"], with_coder(codes=LookupConfig(size=12))),
        (["--coder.codes", "HashConfig"], with_coder(codes=HashConfig())),
        (["--coder.codes=HashConfig", "--coder.codes.size=2"], with_coder(codes=HashConfig(size=2))),
        (["--coder.codes=LevelsConfig", "--coder.codes.levels=[5, 6]"], with_coder(codes=LevelsConfig(levels=(5, 6)))),
        (["--coder.extra", "LookupConfig"], with_coder(extra=LookupConfig())),
        (["--coder.extra", "null", "--coder.kind", "causal"], with_coder(kind="causal")),
        (["--local_rank=1"], mini()),
    ],
)
def test_flags(argv: list[str], expected: DrawingStageConfig) -> None:
    assert config_of(*argv) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"coder": {"codes": {"size": 12}}}, with_coder(codes=LookupConfig(size=12))),
        ({"coder": {"codes": {"is": "HashConfig"}}}, with_coder(codes=HashConfig())),
        ({"coder": {"codes": {"is": "LevelsConfig", "levels": [2]}}}, with_coder(codes=LevelsConfig(levels=(2,)))),
        ({"coder": {"extra": {"is": "LookupConfig", "size": 1}}}, with_coder(extra=LookupConfig(size=1))),
        (
            {"coder": {"parts": [{"is": "PartConfig", "name": "a", "codes": {"is": "HashConfig", "size": 3}}]}},
            with_coder(parts=(PartConfig(name="a", codes=HashConfig(size=3)),)),
        ),
    ],
)
def test_files(tmp_path: Path, values: dict[str, object], expected: DrawingStageConfig) -> None:
    file = tmp_path / "some.json"
    file.write_text(json.dumps(values))
    assert load(mini(), file) == config_of("--config", str(file)) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--coder.dimm", "3"], "unknown key --coder.dimm; did you mean --coder.dim?"),
        (["--koder.codes.size=3"], "unknown key --koder.codes.size; did you mean --coder.codes.size?"),
        (["--presets", "tiny"], "unknown key --presets; did you mean --preset?"),
        (["--zzzz"], "unknown key --zzzz; --help lists them all"),
        (["--coder.dim", "a"], "coder.dim: expected int, got a"),
        (["--coder.kind", "loose"], "coder.kind: expected Literal['free', 'causal'], got loose"),
        (["--coder.codes", "Table"], "coder.codes must be one of LookupConfig, HashConfig, LevelsConfig, got Table"),
        (["--coder.codes.levels", "[1]"], "coder.codes: Option 'levels' is not accepted"),
        (["--coder.extra", "PartConfig"], "coder.extra: the following arguments are required: name, codes"),
        (["--preset", "huge"], "argument --preset: invalid choice: 'huge'"),
        (["tiny"], "unrecognized arguments: tiny"),
        (["--config", "missing.json"], "missing.json cannot be read: "),
        (["--optim.lr=-1"], "optim.lr must be positive, got -1.0"),
        (["--optim.beta2", "1"], "optim.beta2 must be in [0, 1), got 1.0"),
        (["--optim.warmup_steps=-1"], "optim.warmup_steps must be at least 0, got -1"),
        (["--optim.cooldown_fraction", "2"], "optim.cooldown_fraction must be in [0, 1], got 2.0"),
        (["--run.ema", "1"], "run.ema must be in [0, 1), got 1.0"),
        (["--run.threads", "0"], "run.threads must be positive, got 0"),
        (["--run.steps", "0"], "run.steps must be positive, got 0"),
        (["--run.zero_stage", "0"], "run.zero_stage must be in [1, 3] for bfloat16, got 0"),
        (["--run.accumulation", "0"], "run.accumulation must be positive, got 0"),
        (["--run.ema", "0.9", "--run.zero_stage", "3"], "run.ema must be null where run.zero_stage is 3, got 0.9"),
        (
            ["--run.dtype", "float32", "--run.offload", "true"],
            "run.offload must be false where nothing is sharded, got True",
        ),
        (["--optim.rates", '{"head": 0}'], "optim.rates[head] must be positive (a part that must not learn is frozen)"),
        (["--optim.fall", "CosineFall", "--optim.fall.lowest", "2"], "optim.fall.lowest must be in [0, 1], got 2.0"),
        (["--optim.fall", "StepFall"], "optim.fall must be one of LinearFall, CosineFall, got StepFall"),
    ],
)
def test_wrong_command_lines_get_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert complaint(capsys, *argv).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"run": {"step": 3}}', "unknown key run.step; did you mean run.steps?"),
        ('{"run": {"steps": "x"}}', "run.steps: expected int, got x"),
        ('{"optim": {"lr": 0}}', "optim.lr must be positive, got 0"),
        ('{"is": "OtherStageConfig"}', "the config must be one of DrawingStageConfig, got OtherStageConfig"),
        ('{"coder": {"codes": {"is": "Table"}}}', "coder.codes must be one of LookupConfig, HashConfig, LevelsConfig,"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_files_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    file = tmp_path / "some.json"
    file.write_text(text)
    assert message in complaint(capsys, "--config", str(file))
    with pytest.raises(ValueError, match=r"some\.json"):
        load(mini(), file)


def test_printed_config_is_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--preset", "tiny", "--coder.codes", "HashConfig", "--run.ema", "0.5", "--run.output", "elsewhere"]
    with pytest.raises(SystemExit) as left:
        config_of(*argv, "--print_config")
    assert not left.value.code
    file = tmp_path / "config.json"
    file.write_text(capsys.readouterr().out)
    assert load(mini(), file) == config_of(*argv)
    assert file.read_text() == dumps(config_of(*argv)) + "\n"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        config_of("--help")
    assert not left.value.code
    text = " ".join(capsys.readouterr().out.split())
    for wanted in (
        "Draws.",
        "mini: The shipped one.; tiny: One for tests. (default: mini)",
        "Where codes come from. (default: LookupConfig)",
        "Learning rate on the level part. (default: 0.001)",
        "{free,causal} Order. (default: free)",
    ):
        assert wanted in text
    assert "Only the first line" not in text
    with pytest.raises(SystemExit):
        config_of("--coder.codes.help", "LookupConfig")
    assert "Rows of the table, 100% of them." in " ".join(capsys.readouterr().out.split())


@given(
    num_steps=st.integers(1, 300),
    warmup=st.integers(0, 50),
    cooldown=st.floats(0, 1),
)
def test_learning_rate_is_a_trapezoid(num_steps: int, warmup: int, cooldown: float) -> None:
    optim = OptimConfig(lr=2.0, warmup_steps=warmup, cooldown_fraction=cooldown)
    rates = [optim.learning_rate(step, num_steps) for step in range(num_steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_cosine_is_that_of_transformers_once_warm() -> None:
    scheduler = get_cosine_with_min_lr_schedule_with_warmup(
        torch.optim.SGD([torch.zeros(1)], lr=2.0), num_warmup_steps=7, num_training_steps=50, min_lr_rate=0.1
    )
    rate = scheduler.lr_lambdas[0]
    optim = OptimConfig(lr=2.0, warmup_steps=7, cooldown_fraction=1.0, fall=CosineFall(lowest=0.1))
    ours = [optim.learning_rate(step, 50) for step in range(50)]
    assert ours[7:] == pytest.approx([2 * rate(step) for step in range(7, 50)])
    assert ours[:8] == pytest.approx([2 * (step + 1) / 8 for step in range(8)])


def test_parts_and_falls_come_from_the_command_line() -> None:
    flags = ["--optim.rates", '{"embed": 0.5}', "--optim.frozen", '["head", "norm"]', "--optim.cooldown_fraction", "1"]
    optim = config_of(*flags, "--optim.fall", "CosineFall", "--optim.fall.lowest", "0.1").optim
    assert (optim.rates, optim.frozen, optim.fall) == ({"embed": 0.5}, ("head", "norm"), CosineFall(lowest=0.1))


def test_learning_rate_values() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=3, cooldown_fraction=0.4)
    rates = [optim.learning_rate(step, 10) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
