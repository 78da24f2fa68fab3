"""The part of training and testing that all tasks share: epochs, curves, random states."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import distributed

from bam_exp.data.batches import Batches
from bam_exp.data.dataset import Split
from bam_exp.errors import Diverged
from bam_exp.machine import ranks
from bam_exp.tasks.task import Task


class Learner(pl.LightningModule):
    """The training and testing of one task.

    `history` holds the figures of each epoch, named `train/…` and `test/…`, as TensorBoard shows them. A step neither logs
    nor waits for the device: a subclass accumulates sums there and reads them when an epoch ends.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.network = task.network
        self.history: list[dict[str, float]] = []
        self.epoch_listeners: list[Callable[[dict[str, float]], None]] = []
        """Called with the figures of each epoch, after it has been added to the history and before a checkpoint is saved."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning records the current hook about forty times a step, and nn.Module.__setattr__ searches parameters, buffers
        # and modules each time: a sixth of a step's host time.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def headline(self) -> str:
        """The name of the task's headline figure in the history."""
        return f"test/{self.task.headline}"

    @abstractmethod
    def train_figures(self) -> dict[str, float]:
        """The figures of the training epoch that has ended, over all ranks; `train/loss` is among them."""

    @abstractmethod
    def test_figures(self) -> dict[str, float]:
        """The figures of the last evaluation, without `test/`; empty if there has been none since the last epoch."""

    @abstractmethod
    def metrics(self) -> dict[str, float | int]:
        """The figures of the run, for `result.json`: those that the task's `metrics` name."""

    def details(self) -> dict[str, Any]:
        """Further entries of `result.json`, which are no figures; none unless a task has some."""
        return {}

    def train_dataloader(self) -> Batches:
        """The training set, shuffled and augmented."""
        return self._loader("train")

    def val_dataloader(self) -> Batches:
        """The test set."""
        return self._loader("test")

    def _loader(self, split: Split) -> Batches:
        return self.task.data.loader(
            split,
            batch_size=self.task.batch_size,
            seed=self.task.seed,
            device=self.trainer.strategy.root_device,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def seed_step(self) -> None:
        """Give each rank but the first its own random numbers for this step; rank 0 draws as a single process does."""
        if ranks.rank():
            text = f"seed {self.task.seed}, step {self.global_step}, rank {ranks.rank()}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def on_validation_epoch_start(self) -> None:
        """With batch norm statistics of each rank, broadcast those of rank 0 before an evaluation."""
        if ranks.size() > 1 and self.task.batch_norm_parts > 1:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, 0)

    def on_train_epoch_end(self) -> None:
        """Add the figures of the epoch to the history and to TensorBoard.

        Raises:
            Diverged: if the training loss is not finite.
        """
        figures = self.train_figures()
        if not math.isfinite(figures["train/loss"]):
            raise Diverged(f"the training loss is {figures['train/loss']} in epoch {self.current_epoch + 1}")
        # An epoch that max_steps cuts short has not been evaluated yet: see `evaluate_last`.
        self._add(figures | {f"test/{name}": value for name, value in self.test_figures().items()})
        for listener in self.epoch_listeners:
            listener(self.history[-1])

    def evaluate_last(self) -> None:
        """Evaluate after the last step, if Lightning has stopped inside an epoch and has not."""
        if self.history and self.headline not in self.history[-1]:
            figures = self.history.pop()
            self.trainer.validate(self, verbose=False)
            self._add(figures | {f"test/{name}": value for name, value in self.test_figures().items()})

    def _add(self, figures: dict[str, float]) -> None:
        self.history.append(figures)
        if self.headline in figures:
            self.replay(len(self.history) - 1)

    def replay(self, first: int = 0) -> None:
        """Write the curves of the epochs from `first` on to TensorBoard."""
        for epoch, figures in enumerate(self.history[first:], start=first + 1):
            if self.logger is not None and self.headline in figures:
                curves = {name: value for name, value in figures.items() if name != "test/images"}
                self.logger.log_metrics(curves, step=epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the history, and the states of the random generators that layers such as dropout use."""
        checkpoint["history"] = self.history
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available() and self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and the states of the random generators."""
        self.history = list(checkpoint["history"])
        torch.set_rng_state(checkpoint["rng"])
        if "cuda_rng" in checkpoint and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint["cuda_rng"])
