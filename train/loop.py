"""The one training loop of all stages: data, steps, checkpoints, metrics, and at the end a model in a folder."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Tensor, nn

from rebus.model.command_line import refusing
from rebus.train import checkpoint
from rebus.train.average import WeightAverage
from rebus.train.command_line import dumps
from rebus.train.config import OptimConfig, RunConfig
from rebus.train.progress import Reporter
from rebus.train.runtime import (
    autocast,
    leave_processes,
    pick_device,
    seed_step,
    set_threads,
    start_processes,
    stop_requests,
    to_device,
    uses_deepspeed,
)
from rebus.train.updates import DeepSpeedUpdater, PlainUpdater

AVERAGE = "average.safetensors"


@runtime_checkable
class Stage(Protocol):
    """What a stage brings: a model, its data and its loss."""

    @property
    def model(self) -> nn.Module:
        """Everything that trains; frozen helpers stay outside."""
        ...

    @property
    def parts(self) -> dict[str, str]:
        """Hashes of the frozen parts that the model learns with: a run is not continued with others."""
        ...

    def batch(self, step: int, rank: int, world: int) -> Any:
        """Returns rows ``rank::world`` of a step's batch: a pure function of the arguments."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar to be lowered, and metrics of the same names at every step.

        Gradients are averaged over the processes, each weighing the same. A loss per token therefore divides by the
        mean number of tokens over the processes (an all-reduce), not by its own.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Returns the measures of the model on held-out data; every process calls it."""
        ...

    def samples(self, folder: Path) -> None:
        """Writes pictures to look at into a folder that exists; those named ``*.png`` are also put on TensorBoard."""
        ...

    def export(self, folder: Path) -> None:
        """Writes the finished model into an empty folder."""
        ...


def train(stage: Stage, run: RunConfig, optim: OptimConfig, config: Any) -> bool:
    """Trains a stage and exports its model; returns whether it got to the end.

    A run that was stopped (SIGTERM, Ctrl-C, ``max_minutes``) has saved a checkpoint, and the same call goes on from it
    with the very weights and losses that it would have had.

    Args:
        stage: the model, data and loss.
        run: length and place of the run.
        optim: optimizer.
        config: the stage's whole config, saved beside the results.

    Raises:
        ValueError: if the folder's checkpoint does not fit, or there is one and ``run.resume`` is off.
        FloatingPointError: if the loss is not finite.
    """
    return _finish(_Training(stage, run, optim, config))


def launch(program: str, make_stage: Callable[[], Stage], config: Any) -> bool:
    """Trains the stage of a command; before the first step, what a user can cause ends the program in one line.

    Args:
        program: name of the command.
        make_stage: builds the stage.
        config: the stage's whole config, with its ``run`` and ``optim``.
    """
    with refusing(program):
        training = _Training(make_stage(), config.run, config.optim, config)
    return _finish(training)


def _finish(training: "_Training") -> bool:
    try:
        finished = training.to_the_end()
    finally:
        training.close()
    leave_processes()
    return finished


class _Training:
    """A run under way in this process."""

    def __init__(self, stage: Stage, run: RunConfig, optim: OptimConfig, config: Any) -> None:
        set_threads(run)
        self.stage, self.run, self.optim = stage, run, optim
        self.processes = start_processes(run)
        self.device = pick_device(run, self.processes)
        self.first = self.processes.rank == 0
        stage.model.to(self.device).train()
        self.updater = self._updater()
        self.average = None if run.ema is None else WeightAverage(stage.model, run.ema)
        self.step, earlier_seconds, found = 0, 0.0, checkpoint.newest(run.output)
        if found is not None:
            earlier_seconds = self._load(found)
        self.began = self.saved_at = time.monotonic()
        self.earlier_seconds, self.saved_step = earlier_seconds, self.step if found is not None else -1
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.reporter: Reporter | None = None
        if self.first:
            run.output.mkdir(parents=True, exist_ok=True)
            (run.output / "config.json").write_text(dumps(config) + "\n")
            self.reporter = Reporter(run.output, self.step, run.steps, run.batch_size)
            self._say(f"{run.output}: {'from the start' if found is None else f'on from {found.name}'}")

    def to_the_end(self) -> bool:
        """Takes the steps that are left and exports; returns whether nobody asked to stop before."""
        run = self.run
        with stop_requests() as asked:
            while self.step < run.steps:
                late = run.max_minutes is not None and self._minutes_since(self.began) > run.max_minutes
                stop, save = self.processes.any(
                    asked.is_set() or late, self._minutes_since(self.saved_at) > run.save_minutes
                )
                if stop or save:
                    self._save()
                if stop:
                    self._say(f"stopped after step {self.step}; the same command goes on from there")
                    return False
                self._take_step()
                if self.step % run.log_every == 0 or self.step == run.steps:
                    self._report()
                if self.step % run.save_every == 0 or self.step == run.steps:
                    self._save()
                if run.validate_every is not None and self.step % run.validate_every == 0 and self.step < run.steps:
                    self._look()
        self._look()
        self._export()
        return True

    def close(self) -> None:
        """Ends the report."""
        if self.reporter is not None:
            self.reporter.close()

    def _updater(self) -> PlainUpdater | DeepSpeedUpdater:
        loss_in_float32 = torch.compile(self.stage.loss) if self.run.compile else self.stage.loss

        def loss(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            with autocast(self.run, self.device):
                return loss_in_float32(batch)

        if uses_deepspeed(self.run, self.processes):
            return DeepSpeedUpdater(self.stage.model, loss, self.run, self.optim, self.processes.world)
        return PlainUpdater(self.stage.model, loss, self.optim)

    def _take_step(self) -> None:
        rank, world = self.processes.rank, self.processes.world
        batch = to_device(self.stage.batch(self.step, rank, world), self.device)
        seed_step(self.run, self.step, rank)
        try:
            loss, metrics = self.updater.update(batch, self.optim.learning_rate(self.step, self.run.steps))
        except FloatingPointError as error:
            raise FloatingPointError(f"step {self.step}: {error}") from error
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        for name, value in {"loss": loss, **metrics}.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.num_summed += 1
        if self.reporter is not None:
            self.reporter.advance(self.step)

    def _report(self) -> None:
        """Reports the means since the last report, over the processes."""
        means = self.processes.mean({name: float(value) / self.num_summed for name, value in self.sums.items()})
        self.sums, self.num_summed = {}, 0
        if self.reporter is not None:
            rate = self.optim.learning_rate(self.step - 1, self.run.steps)
            self.reporter.training(self.step, {**means, "lr": rate}, self._seconds())

    def _look(self) -> None:
        """Validates in every process alike, so that a stage may let them speak; the first one draws samples."""
        with self._evaluation():
            measures = self.stage.validate()
            if self.reporter is not None:
                self.reporter.validation(self.step, measures)
                folder = self.run.output / "samples"
                folder.mkdir(exist_ok=True)
                self.stage.samples(folder)
                self.reporter.pictures(self.step, folder)
        self.processes.barrier()

    def _export(self) -> None:
        if self.first:
            self.updater.free_parameters()
            with self._evaluation():
                checkpoint.write_folder(self.run.output / "export", self.stage.export)
            self._say("\n".join(f"{name}: {self.run.output / name}" for name in ("export", "samples", "metrics.jsonl")))
        self.processes.barrier()

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        model = self.stage.model.eval()
        with torch.no_grad(), self.average.in_place() if self.average is not None else nullcontext():
            yield
        model.train()

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        folder = self.run.output / f"checkpoint-{self.step}"
        new = checkpoint.draft(folder) if self.first else checkpoint.draft_of(folder)
        self.processes.barrier()
        self.updater.save(new)
        self.processes.barrier()
        if self.first:
            if self.average is not None:
                safetensors.torch.save_file(self.average.state(), new / AVERAGE)
            shutil.copy(self.run.output / "config.json", new)
            state = {"step": self.step, "seconds": self._seconds(), "parts": self.stage.parts}
            (new / "state.json").write_text(json.dumps(state))
            checkpoint.publish(folder)
            checkpoint.drop_old(self.run.output)
        self.saved_at, self.saved_step = time.monotonic(), self.step

    def _load(self, folder: Path) -> float:
        """Takes over a checkpoint; returns the seconds that its run had taken."""
        if not self.run.resume:
            raise ValueError(f"run.output must hold no checkpoint when run.resume is false, got {folder}")
        if (folder / AVERAGE).exists() != (self.average is not None):
            raise ValueError(f"run.ema must be on or off as in {folder}, got {self.run.ema}")
        state = checkpoint.read_state(folder)
        if state.get("parts") != self.stage.parts:
            raise ValueError(f"parts of the run must be {state.get('parts')}, as in {folder}, got {self.stage.parts}")
        self.updater.load(folder)
        if self.average is not None:
            self.average.load(safetensors.torch.load_file(folder / AVERAGE))
        self.step = state["step"]
        return state["seconds"]

    def _say(self, text: str) -> None:
        if self.reporter is not None:
            self.reporter.say(text)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    @staticmethod
    def _minutes_since(moment: float) -> float:
        return (time.monotonic() - moment) / 60
