"""The progress of a run for the user: a line for each epoch, a bar in a terminal, and the time to go."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from bam_exp.console import say
from bam_exp.durations import duration
from bam_exp.figures import FIGURES
from bam_exp.machine import ranks
from bam_exp.machine.precision import Precision
from bam_exp.processes import beside_others, place
from bam_exp.runs.folder import write_progress
from bam_exp.tasks.learner import Learner
from bam_exp.training.timing import Timing

WIDTH = 80
"""Columns that the line of an epoch may take; where it would take more, the speed of its steps is left out."""


class Progress(pl.Callback):
    """Prints the figures of each epoch with the time to go, and writes the run's `progress.json`."""

    def __init__(self, name: str, precision: Precision) -> None:
        self.name = name
        self.precision = precision
        self.timing = Timing()
        self.bar: Bar | None = None
        self.shown = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what starts, or where it continues."""
        learner = cast(Learner, pl_module)
        device, count = learner.device, torch.get_num_threads()
        threads = "" if device.type == "cuda" else f", {count} thread{'s' * (count > 1)}"
        processes = f", {ranks.size()} processes" if ranks.size() > 1 else ""
        where = f" (continued at epoch {trainer.current_epoch + 1})" if trainer.global_step else ""
        self._say(f"{place()}{self.name}: training on {device.type}{processes}{threads}, {self.precision}{where}")
        if sys.stderr.isatty() and not beside_others():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("steps", total=_all_steps(trainer), completed=trainer.global_step)
            self.bar.start()
        self.first_step = trainer.global_step
        for epoch in range(len(self.timing.times)):  # of a run that continues
            self._log_times(trainer, epoch + 1)
        self.timing.start(cast(Any, trainer.train_dataloader))
        learner.epoch_listeners.append(lambda figures: self._end_epoch(trainer, len(learner.history), figures))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks of an epoch."""
        self.timing.start_epoch()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Count the step's time, and move the bar at most five times a second."""
        self.timing.end_step()
        if self.bar is not None and time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            self.bar.update(self.task, completed=trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of an evaluation, and show in the bar that there is one."""
        self.timing.start_test()
        self._describe("testing")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the evaluation, and show in the bar that the steps go on."""
        self.timing.end_test()
        self._describe("steps")

    def _describe(self, words: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, description=words, refresh=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clocks of the last epoch."""
        self.timing.close_epoch()

    def _end_epoch(self, trainer: pl.Trainer, epoch: int, figures: dict[str, float]) -> None:
        """Print the figures of the epoch that has ended."""
        self.timing.end_epoch()
        self._log_times(trainer, epoch)
        epochs, spent = int(trainer.max_epochs or 0), self.timing.spent
        steps_left = _all_steps(trainer) - trainer.global_step
        # The first epoch of a process chooses and compiles kernels; it is the measure only until there is another.
        if later := self.timing.seconds[1:]:
            step_seconds = sum(later) / len(later) / trainer.num_training_batches
        else:
            step_seconds = self.timing.seconds[0] / max(1, trainer.global_step - self.first_step)
        to_go = step_seconds * steps_left
        skipped = f"  {figures['train/skipped_images']:.0f} images skipped" if "train/skipped_images" in figures else ""
        waited = ""
        if spent.waited > spent.seconds / 100:
            waited = f", {spent.waited:.1f} s of {spent.seconds:.1f} s waiting for data"
        figure = FIGURES[cast(Learner, trainer.lightning_module).task.headline]
        tested = f"test/{figure.name}"
        error = f"  {figure.text(figures[tested])}" if tested in figures else ""
        begin = (
            f"{place() or '  '}epoch {epoch:{len(str(epochs))}}/{epochs}  loss {figures['train/loss']:.3f}{error}"
            f"  {duration(self.timing.seconds[-1])}"
        )
        step = f"{self.timing.times[-1]['step_ms']:.0f} ms a step"
        rest = skipped + (f"  {duration(to_go)} to go" if to_go else "")
        speeds = (f" ({step}{waited})", f" ({step})", "")
        self._say(next(line for speed in speeds if len(line := begin + speed + rest) <= WIDTH or not speed))
        write_progress(Path(trainer.default_root_dir), epoch, epochs, to_go)

    def _log_times(self, trainer: pl.Trainer, epoch: int) -> None:
        """Write the speed of an epoch to TensorBoard."""
        if trainer.logger is not None:
            times = self.timing.times[epoch - 1]
            batch_size = cast(Learner, trainer.lightning_module).task.batch_size
            curves = {
                "time/step_ms": times["step_ms"],
                "time/images_per_second": 1000 * batch_size / max(times["step_ms"], 1e-3),
                "time/data_wait_percent": 100 * times["data_wait_seconds"] / max(times["train_seconds"], 1e-3),
            }
            trainer.logger.log_metrics(curves, step=epoch)

    def state_dict(self) -> dict[str, Any]:
        """The times so far, for a checkpoint."""
        return self.timing.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the times of a checkpoint."""
        self.timing.load_state_dict(state_dict)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the bar at the end of training."""
        self._remove_bar()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar when training fails or is interrupted."""
        self._remove_bar()

    def _remove_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def summary(self) -> dict[str, Any]:
        """Times and memory for `result.json`."""
        return self.timing.summary()

    def _say(self, line: str) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            say(line)


def _all_steps(trainer: pl.Trainer) -> int:
    """The number of optimizer steps of the whole run."""
    steps = int(trainer.estimated_stepping_batches)
    last = cast(Learner, trainer.lightning_module).task.last_step
    return steps if last is None else min(steps, last)
