"""Kills a training again and again, lets it go on, and compares it with one that nobody killed.

python -m rebus.train.verify_resume --kills 30 --json

A small language model learns from shards of emoji scenes. Its processes get SIGKILL in turn while they take steps,
while they write a checkpoint, and at any time after their start. In the end the weights, the memory of the optimizer,
the loss of every step, the samples of every batch and the exported model must be those of the straight run, bit by bit.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from rebus.model.command_line import CommandParser
from rebus.train.small_training import make_shards, small

STEPS_PER_KILL = 12
_POLL_SECONDS, _SAVE_SECONDS = 0.002, 0.03
_TIMES = ("seconds", "samples_per_second", "peak_memory_mib")


class Trial:
    """Trainings with the same shards in a folder, by as many processes each."""

    def __init__(self, folder: Path, steps: int, processes: int, seed: int) -> None:
        self.folder, self.steps, self.processes = folder, steps, processes
        self.random, self.start_seconds = random.Random(seed), 0.0
        make_shards(folder / "shards", small().row_length)

    def start(self, output: Path, *flags: str) -> subprocess.Popen[bytes]:
        """Starts a training, or goes on with it."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        where = ["--run.output", str(output), "--run.steps", str(self.steps), "--shards", str(self.folder / "shards")]
        command = [*(launcher if self.processes > 1 else []), "-m", "rebus.train.small_training", *where, *flags]
        unset = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        with (self.folder / f"{output.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                env={**environment, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, output: Path, *flags: str) -> None:
        """Trains to the end.

        Raises:
            ValueError: if the training fails.
        """
        began, process = time.time(), self.start(output, *flags)
        while process.poll() is None and not _num_lines(output / "order-0.jsonl"):
            time.sleep(_POLL_SECONDS)
        self.start_seconds, code = time.time() - began, process.wait()
        if not (output / "export" / "model.safetensors").exists():
            log = (self.folder / f"{output.name}.log").read_text()[-2000:]
            raise ValueError(f"training must end by itself, got exit code {code}:\n{log}")

    def kill(self, output: Path, number: int) -> bool | None:
        """Starts a training and kills it; returns whether that hit a save, and nothing if it had ended before.

        The first, the fourth and so on wait for a count of steps, the next for a save, and the last for a time, unless
        that count of steps is there first: how long a start takes differs too much to rely on.
        """
        taken, wanted = _num_lines(output / "order-0.jsonl"), self.random.randint(1, 2 * STEPS_PER_KILL - 1)
        began, seconds = time.time(), self.random.uniform(0, self.start_seconds)

        def stepped() -> bool:
            return _num_lines(output / "order-0.jsonl") >= taken + wanted

        moments: list[Callable[[], bool]] = [
            stepped,
            lambda: _saving(output, began),
            lambda: time.time() > began + seconds or stepped(),
        ]
        kind, process, delay = number % len(moments), self.start(output), self.random.uniform(0, _SAVE_SECONDS)
        while True:
            while process.poll() is None and not moments[kind]():
                time.sleep(_POLL_SECONDS)
            time.sleep(delay)
            if process.poll() is not None:
                return None
            family = _halted(process)
            if (hit := _saving(output, began)) or kind != 1:
                _kill_all(process, family)
                return hit
            # The save was over before the processes stood still: the next one is halted as soon as it is seen.
            _each(family, psutil.Process.resume)
            delay = 0


def _halted(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Halts a program and all that it started: torchrun puts its processes into sessions of their own."""
    own = psutil.Process(process.pid)
    _each([own], psutil.Process.suspend)  # first, so that it starts no other meanwhile
    children = own.children(recursive=True)
    _each(children, psutil.Process.suspend)
    return [own, *children]


def _each(family: list[psutil.Process], signal: Callable[[psutil.Process], None]) -> None:
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            signal(one)


def _kill_all(process: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
    _each(family, psutil.Process.kill)
    process.wait()
    _, alive = psutil.wait_procs(family[1:], timeout=10)
    assert not alive, "a process that was killed must be gone"


def compare(straight: Path, killed: Path, steps: int) -> dict[str, bool]:
    """Returns for each part of what two trainings left whether it is the same, bit for bit."""
    states = [_state(output / f"checkpoint-{steps}") for output in (straight, killed)]
    weights, memories = (
        [{name: value for name, value in state.items() if name.startswith("weight/") == is_weight} for state in states]
        for is_weight in (True, False)
    )
    return {
        "parameters": _equal(*weights),
        "optimizer": _equal(*memories),
        "losses": _losses(straight) == _losses(killed),
        "sample_order": order(straight) == order(killed),
        "export": all(
            path.read_bytes() == (killed / "export" / path.name).read_bytes()
            for path in (straight / "export").iterdir()
        ),
    }


def _saving(output: Path, since: float) -> bool:
    return any(path.stat().st_mtime >= since for path in output.glob("checkpoint-*.new"))


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _state(checkpoint: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(checkpoint / "state-00000.safetensors")


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _losses(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in _TIMES} for row in rows]


def order(output: Path) -> dict[int, set[str]]:
    """Returns the rows that were read for each step; a step that was taken twice must have read the same."""
    lines = (line for path in output.glob("order-*.jsonl") for line in path.read_text().splitlines())
    read: dict[int, set[str]] = {}
    for row in map(json.loads, lines):
        read.setdefault(row["step"], set()).update(row["rows"])
    return read


def verify(folder: Path, kills: int, processes: int, seed: int) -> dict[str, int | bool]:
    """Returns how many kills there were, how many of them hit a save, and what is equal in the end.

    Raises:
        ValueError: if a training does not end by itself when nobody kills it.
    """
    trial = Trial(folder, num_steps(kills), processes, seed)
    straight, killed = folder / "straight", folder / "killed"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("the straight run", total=kills)
        trial.finish(straight)
        progress.update(task, description="kills")
        hits: list[bool] = []
        for number in range(kills):
            if (hit := trial.kill(killed, number)) is None:
                break
            hits.append(hit)
            progress.advance(task)
        progress.update(task, description="the last run")
        trial.finish(killed)
    same = compare(straight, killed, trial.steps)
    return {"kills": len(hits), "during_a_save": sum(hits), **same, "bit_equal": all(same.values())}


def num_steps(kills: int) -> int:
    """Returns the steps of a training: more than so many kills let it take, so that each of them finds it at work."""
    return STEPS_PER_KILL * 2 * (kills + 1)


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if all is equal, 1 if something is not."""
    parser = CommandParser(__doc__)
    parser.add_argument("--kills", type=int, default=30, help="how often to kill (default: 30, some five minutes)")
    parser.add_argument("--processes", type=int, default=1, help="of the training; several train under DeepSpeed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse(argv)
    for name in ("kills", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"{name} must be at least 1, got {getattr(options, name)}")
    with parser.refusing(), tempfile.TemporaryDirectory() as folder:
        found = verify(Path(folder), options.kills, options.processes, options.seed)
    if options.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in found.items()))
    return 0 if found["bit_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
