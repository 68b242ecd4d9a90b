"""The one training loop of all stages: data, steps, checkpoints, metrics, and at the end a model in a folder."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rebus.model.command_line import refusing
from rebus.train import checkpoint, named_state
from rebus.train.average import WeightAverage
from rebus.train.command_line import dumps
from rebus.train.config import OptimConfig, RunConfig
from rebus.train.loss_guard import LossGuard
from rebus.train.out_of_memory import advice, is_out_of_memory
from rebus.train.parameter_groups import freeze
from rebus.train.progress import Reporter
from rebus.train.runtime import (
    autocast,
    compiled,
    leave_processes,
    pick_device,
    recompute_activations,
    seed_step,
    set_threads,
    start_processes,
    stop_requests,
    to_device,
    uses_deepspeed,
)
from rebus.train.stage import HasDataState, Stage
from rebus.train.updates import DeepSpeedUpdater, PlainUpdater

AVERAGE = "average.safetensors"


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
        FloatingPointError: if the loss or the gradient is not finite; says where the batch is written down.
        MemoryError: if a step finds too little memory; it says what needs how much and what to change.
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
        self.row_length = getattr(config, "row_length", 0)
        self.processes = start_processes(run)
        self.device = pick_device(run, self.processes)
        self.first = self.processes.rank == 0
        freeze(stage.model, optim)
        frozen = named_state.frozen_hash(stage.model)
        self.parts = stage.parts if frozen is None else {**stage.parts, "frozen_weights": frozen}
        if run.activation_checkpointing:
            recompute_activations(stage.model)
        stage.model.to(self.device).train()
        self.updater = self._updater()
        self.average = None if run.ema is None else WeightAverage(stage.model, run.ema)
        self.step, earlier_seconds = 0, 0.0
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.guard = LossGuard(run.output / "suspicious", run.spike_deviations)
        found, problems = self.processes.told(lambda: checkpoint.newest(run.output))
        if found is not None:
            earlier_seconds = self._load(found)
        self.began = self.saved_at = time.monotonic()
        self.earlier_seconds, self.saved_step = earlier_seconds, self.step if found is not None else -1
        self.reporter: Reporter | None = None
        if self.first:
            run.output.mkdir(parents=True, exist_ok=True)
            (run.output / "config.json").write_text(dumps(config) + "\n")
            self.reporter = Reporter(run.output, self.step, run.steps, run.batch_size)
            for problem in problems:
                self._say(f"{run.output}: {problem}")
            self._say(f"{run.output}: {'from the start' if found is None else f'on from {found.name}'}")

    def to_the_end(self) -> bool:
        """Takes the steps that are left and exports; returns whether nobody asked to stop before."""
        run = self.run
        self._look_if_due()  # a kill may have come between a checkpoint and the look at it
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
                self._look_if_due()
        self._export()
        return True

    def close(self) -> None:
        """Ends the report."""
        if self.reporter is not None:
            self.reporter.close()

    def _updater(self) -> PlainUpdater | DeepSpeedUpdater:
        own_loss = self.stage.loss
        loss_in_float32 = compiled(self.stage.model, own_loss) if self.run.compile else own_loss

        def loss(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            with autocast(self.run, self.device):
                return loss_in_float32(batch)

        if uses_deepspeed(self.run, self.processes):
            return DeepSpeedUpdater(self.stage.model, loss, self.run, self.optim, self.processes.world)
        return PlainUpdater(self.stage.model, loss, self.optim)

    def _take_step(self) -> None:
        rank, world, accumulation = self.processes.rank, self.processes.world, self.run.accumulation
        starts = range(rank, world * accumulation, world)
        parts = [self.stage.batch(self.step, start, world * accumulation) for start in starts]
        self.processes.share_targets(parts)
        seed_step(self.run, self.step, rank)
        try:
            rate = self.optim.learning_rate(self.step, self.run.steps)
            metrics = self.updater.update(to_device(parts, self.device), rate)
        except FloatingPointError as error:
            noted = self._noted(parts, {"error": str(error)})
            raise FloatingPointError(f"step {self.step}: {error}; its batch is in {noted}") from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryError(advice(self.stage.model, self.run, world, self.row_length, self.device)) from error
            raise
        loss = self.processes.mean({"loss": float(metrics["loss"])})["loss"]
        if self.guard.is_spike(loss):
            noted = self._noted(parts, {"loss": loss, **self.guard.state()})
            self._say(f"step {self.step}: loss {loss:.4g} is far above {self.guard.mean:.4g}; its batch is in {noted}")
        if self.average is not None:
            self.average.update(self.step)
        self.step += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.num_summed += 1
        if self.reporter is not None:
            self.reporter.advance(self.step)

    def _noted(self, parts: list[Any], why: dict[str, Any]) -> Path | str:
        """Writes down this process's rows of the step, and returns where."""
        why = {**why, "data": self._data_state()}
        return self.guard.dump(self.step, self.processes.rank, parts, why) or "none of the folders: there are enough"

    def _report(self) -> None:
        """Reports the means since the last report, over the processes."""
        means = self._means()
        self.sums, self.num_summed = {}, 0
        if self.reporter is not None:
            rate = self.optim.learning_rate(self.step - 1, self.run.steps)
            self.reporter.training(self.step, {**means, "lr": rate}, self._seconds())

    def _means(self) -> dict[str, float]:
        return self.processes.mean({name: float(value) / self.num_summed for name, value in self.sums.items()})

    def _look_if_due(self) -> None:
        every = self.run.validate_every
        due = self.step == self.run.steps or (every is not None and self.step > 0 and self.step % every == 0)
        if due and not any(self.processes.any(self.reporter is not None and self.reporter.is_validated(self.step))):
            self._look()

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
        with self._evaluation():
            if self.first:
                self.updater.free_parameters()
                checkpoint.write_folder(self.run.output / "export", self.stage.export)
        self._say("\n".join(f"{name}: {self.run.output / name}" for name in ("export", "samples", "metrics.jsonl")))
        self.processes.barrier()

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        model = self.stage.model.eval()
        averaged = self.average.in_place() if self.average is not None else nullcontext()
        with torch.no_grad(), self.updater.whole_model(), averaged:
            yield
        model.train()

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        folder = self.run.output / f"checkpoint-{self.step}"
        new = checkpoint.draft(folder) if self.first else checkpoint.draft_of(folder)
        self.processes.barrier()
        named_state.write(new, self.stage.model, self.updater.state, first=self.first)
        means = self._means()
        if self.first:
            if self.average is not None:
                safetensors.torch.save_file(self.average.state(), new / AVERAGE)
            shutil.copy(self.run.output / "config.json", new)
            (new / "state.json").write_text(json.dumps(self._state(means)))
            checkpoint.publish_checkpoint(folder)
        self.saved_at, self.saved_step = time.monotonic(), self.step

    def _state(self, means: dict[str, float]) -> dict[str, Any]:
        """Returns where the run stands, the same for any number of processes."""
        return {
            "step": self.step,
            "seconds": self._seconds(),
            "parts": self.parts,
            "data": self._data_state(),
            "guard": self.guard.state(),
            "means": means,
            "num_summed": self.num_summed,
        }

    def _data_state(self) -> dict[str, Any]:
        return self.stage.data_state(self.step) if isinstance(self.stage, HasDataState) else {}

    def _load(self, folder: Path) -> float:
        """Takes over a checkpoint; returns the seconds that its run had taken."""
        if not self.run.resume:
            raise ValueError(f"run.output must hold no checkpoint when run.resume is false, got {folder}")
        if (folder / AVERAGE).exists() != (self.average is not None):
            raise ValueError(f"run.ema must be on or off as in {folder}, got {self.run.ema}")
        state = checkpoint.read_state(folder)
        if state.get("parts") != self.parts:
            raise ValueError(f"parts of the run must be {state.get('parts')}, as in {folder}, got {self.parts}")
        named_state.read(folder, self.stage.model, self.updater.state)
        if isinstance(self.stage, HasDataState):
            self.stage.load_data_state(state["data"])
        if self.average is not None:
            self.average.load(safetensors.torch.load_file(folder / AVERAGE))
        self.guard.load_state(state["guard"])
        self.step, self.num_summed = state["step"], state["num_summed"]
        self.sums = {name: torch.tensor(mean * self.num_summed) for name, mean in state["means"].items()}
        return state["seconds"]

    def _say(self, text: str) -> None:
        if self.reporter is not None:
            self.reporter.say(text)

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    @staticmethod
    def _minutes_since(moment: float) -> float:
        return (time.monotonic() - moment) / 60
