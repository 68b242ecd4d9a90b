"""What a run tells: metrics.jsonl, TensorBoard, and a progress bar or plain lines."""

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class Reporter:
    """Writes down the course of a run.

    Args:
        output: folder of the run.
        step: steps that are done; what an earlier process wrote after them is dropped.
        num_steps: steps in all.
        batch_size: rows of a step, for the rate.
    """

    def __init__(self, output: Path, step: int, num_steps: int, batch_size: int) -> None:
        self.path, self.num_steps, self.batch_size = output / "metrics.jsonl", num_steps, batch_size
        self._validated: set[int] = set()
        self._cut(step)
        self.board = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)
        self.last_step, self.last_time = step, time.monotonic()
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
            self.task = self.bar.add_task("", total=num_steps, completed=step)
            self.bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar to a number of finished steps."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def training(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Reports metrics after ``step`` steps and ``seconds`` in all; the rate is that since the last report."""
        now = time.monotonic()
        rate = (step - self.last_step) * self.batch_size / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        self._write(
            step, {**metrics, "samples_per_second": rate, "seconds": seconds, "peak_memory_mib": _peak_memory_mib()}
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=f"loss {metrics['loss']:.4g}  {rate:.4g}/s")
        else:
            minutes = (self.num_steps - step) * self.batch_size / rate / 60
            self._line(step, {**metrics, "per_second": rate, "minutes_left": minutes})

    def is_validated(self, step: int) -> bool:
        """Returns whether a validation after so many steps stands in the report, of this process or an earlier one."""
        return step in self._validated

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Reports a validation."""
        self._validated.add(step)
        self._write(step, {f"validation/{name}": value for name, value in metrics.items()})
        self._line(step, {f"validation/{name}": value for name, value in metrics.items()})

    def pictures(self, step: int, folder: Path) -> None:
        """Shows the sample pictures of a folder on the board."""
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as picture:
                self.board.add_image(path.stem, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.print(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Ends the bar and flushes the board."""
        if self.bar is not None:
            self.bar.stop()
        self.board.close()

    def _line(self, step: int, values: dict[str, float]) -> None:
        self.say("  ".join([f"{step}/{self.num_steps}", *(f"{name} {value:.4g}" for name, value in values.items())]))

    def _write(self, step: int, row: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            self.board.add_scalar(name, value, step)

    def _cut(self, step: int) -> None:
        """Drops what a run wrote after the checkpoint it resumes from, so that every step stands there once."""
        if self.path.exists():
            # A line that a full disk or a power cut left without its end is of a step after the checkpoint.
            whole = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            rows = {line: json.loads(line) for line in whole}
            lines = [line for line, row in rows.items() if row["step"] <= step]
            self._validated = {
                rows[line]["step"] for line in lines if any("validation/" in name for name in rows[line])
            }
            new = self.path.with_suffix(".new")
            new.write_text("".join(line + "\n" for line in lines))
            os.replace(new, self.path)


def _peak_memory_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
