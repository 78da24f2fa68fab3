"""What a person sees of a run while it trains: a line an epoch, a bar in a terminal, the time to go; and a file for `status`."""

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from bam_exp.data import Batches
from bam_exp.files import write_atomically
from bam_exp.machine import ranks
from bam_exp.runs.run import PROGRESS, duration


class Curves(TensorBoardLogger):
    """TensorBoard's event file of one run, in the run's folder: one file, closed when the run says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()  # of an interrupted start: the curves so far are in the checkpoint and are written again

    def save(self) -> None:
        """Write no hparams.yaml: result.json has the config."""

    def finalize(self, status: str) -> None:
        """Stay open: Lightning says this after training, when the final error is still to come."""

    def close(self, choices: dict[str, Any], error: float) -> None:
        """Fill the HParams tab, once, and close the file."""
        self.log_hyperparams(choices, {"top1_error": error})
        self.experiment.close()


@dataclass
class Spent:
    """What the training of an epoch has taken so far; an interrupted epoch goes on with it."""

    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0


class BetweenSteps(Checkpoint):
    """A callback with nothing to do inside a step: Lightning skips a hook that is None, and spends 3 us on an empty one.

    It is a `Checkpoint` so that Lightning calls it after the task has closed the epoch.
    """

    on_train_batch_start = on_before_zero_grad = on_before_optimizer_step = None  # type: ignore[assignment]
    on_before_backward = on_after_backward = None  # type: ignore[assignment]


class Progress(BetweenSteps):
    """Prints an epoch's figures with the time to go, and keeps `progress.json` in the run's folder."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.seconds: list[float] = []
        """Wall time of the epochs of this process, evaluation included."""
        self.times: list[dict[str, float]] = []
        """Of every epoch: its training in seconds, the part of them spent waiting for data, and a step's share in ms."""
        self.opened = 0.0
        self.trained = Spent()
        self.bar: Bar | None = None
        self.shown = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what starts, or where it continues."""
        device = pl_module.device
        count = torch.get_num_threads()
        threads = "" if device.type == "cuda" else f", {count} thread{'s' * (count > 1)}"
        processes = f", {ranks.size()} processes" if ranks.size() > 1 else ""
        where = f" (continued at epoch {trainer.current_epoch + 1})" if trainer.global_step else ""
        self._say(f"{self.name}: training on {device.type}{processes}{threads}{where}")
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            steps = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("steps", total=steps, completed=trainer.global_step)
            self.bar.start()
        self.first_step = trainer.global_step
        self.opened = self.counted = time.monotonic()
        loader: Any = trainer.train_dataloader
        self.loader: Batches = loader
        self.waited = self.loader.waited

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of an epoch."""
        self.opened = self.counted = time.monotonic()
        self.trained = Spent()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Count the step's time; move the bar, five times a second at most."""
        now, waited = time.monotonic(), self.loader.waited
        self.trained.seconds += now - self.counted
        self.trained.waited += waited - self.waited
        self.trained.steps += 1
        self.counted, self.waited = now, waited
        if self.bar is not None and time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            self.bar.update(self.task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the figures of the epoch that has just ended."""
        self.seconds.append(time.monotonic() - self.opened)
        history: list[dict[str, float]] = pl_module.history  # type: ignore[assignment]
        epochs, done, figures = int(trainer.max_epochs or 0), len(history), history[-1]
        steps_left = int(trainer.estimated_stepping_batches) - trainer.global_step
        to_go = sum(self.seconds) / max(1, trainer.global_step - self.first_step) * steps_left
        spent = self.trained
        times = {
            "train_seconds": round(spent.seconds, 3),
            "data_wait_seconds": round(spent.waited, 3),
            "step_ms": round(1000 * spent.seconds / max(1, spent.steps), 3),
        }
        self.times.append(times)
        skipped = f"  {figures['train/skipped_images']:.0f} images skipped" if "train/skipped_images" in figures else ""
        waited = ""
        if spent.waited > spent.seconds / 100:
            waited = f", {spent.waited:.1f} s of {spent.seconds:.1f} s waiting for data"
        error = f"  test error {figures['test/top1_error']:5.2f} %" if "test/top1_error" in figures else ""
        self._say(
            f"  epoch {done:{len(str(epochs))}}/{epochs}  loss {figures['train/loss']:.3f}{error}"
            f"  {duration(self.seconds[-1])} ({times['step_ms']:.0f} ms a step{waited}){skipped}"
            + (f"  {duration(to_go)} to go" if to_go else "")
        )
        state = {"epoch": done, "epochs": epochs, "seconds_to_go": round(to_go, 1), "time": time.time()}
        write_atomically(Path(trainer.default_root_dir) / PROGRESS, json.dumps(state) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The times so far, for the checkpoint."""
        return {"times": self.times, "trained": asdict(self.trained)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self.times, self.trained = list(state_dict["times"]), Spent(**state_dict["trained"])

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the bar away, however training ended."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def seconds_per_epoch(self) -> float | None:
        """Median wall time of the epochs of this process, evaluation included."""
        return round(median(self.seconds), 3) if self.seconds else None

    def data_wait_percent(self) -> float:
        """Share of the training time of all epochs in which no batch was ready."""
        trained = sum(epoch["train_seconds"] for epoch in self.times)
        return round(100 * sum(epoch["data_wait_seconds"] for epoch in self.times) / trained, 2) if trained else 0.0

    def peak_memory_mib(self) -> float:
        """Largest memory of this process so far: the device's on a GPU, else resident."""
        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return round(torch.cuda.max_memory_allocated() / 2**20, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)
