"""The part of training and testing that all tasks share: epochs, curves, divergence, random states."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed

from bam_exp.data.batches import Batches
from bam_exp.data.dataset import Split
from bam_exp.errors import Diverged
from bam_exp.figures import FIGURES
from bam_exp.machine import ranks
from bam_exp.tasks.delayed import DelayedScalar
from bam_exp.tasks.task import Task

STEP_LOSS = "train/step_loss"
"""Name of the curve of losses of single steps."""

LOSS_EVERY = 25
"""Steps between two losses that are read. Each is read so many steps later, so a run that diverges ends within 50 steps."""


class Learner(pl.LightningModule):
    """The training and testing of one task.

    `history` holds the figures of each epoch, named `train/…` and `test/…`, as TensorBoard shows them. A step does not wait for
    the device: a subclass accumulates sums there and reads them when an epoch ends.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.network = task.network
        self.history: list[dict[str, float]] = []
        self.step_losses: list[tuple[int, float]] = []
        """The training loss of every `LOSS_EVERY`-th step, with the number of steps until then."""
        self._loss = DelayedScalar()
        self._learning_rate = 0.0
        self.picture: bytes | None = None
        """A PNG that shows the last evaluation, if the task has one; on rank 0."""
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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Record the learning rate, which Lightning changes before the last step of an epoch ends."""
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the loss every `LOSS_EVERY` steps, and stop after the task's last step.

        Raises:
            Diverged: if the loss recorded before is not finite.
        """
        step = self.global_step
        if step % LOSS_EVERY == 0:
            self._read_loss()
            self._loss.put(step, outputs["loss"])
        if self.task.last_step is not None and step >= self.task.last_step:
            self.trainer.should_stop = True

    def _read_loss(self) -> None:
        if (taken := self._loss.take()) is None:
            return
        step, loss = taken
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss} in step {step}; a smaller recipe.lr may help")
        self.step_losses.append((step, loss))
        if self.logger is not None:
            self.logger.log_metrics({STEP_LOSS: loss}, step=step)

    def sample_images(self, batch: Any) -> Tensor | None:
        """Some images of a training batch for TensorBoard, N x 3 x H x W in 0 ... 1; None if a task shows none."""
        return None

    def on_train_epoch_end(self) -> None:
        """Add the figures of the epoch to the history and to TensorBoard.

        Raises:
            Diverged: if the training loss is not finite.
        """
        figures = self.train_figures()
        if not math.isfinite(figures["train/loss"]):
            raise Diverged(
                f"the training loss is {figures['train/loss']} in epoch {self.current_epoch + 1}; a smaller recipe.lr may help"
            )
        figures["train/learning_rate"] = self._learning_rate
        # An epoch that max_steps cuts short has not been evaluated yet: see `evaluate_last`.
        self._add(figures | {f"test/{name}": value for name, value in self.test_figures().items()})
        for listener in self.epoch_listeners:
            listener(self.history[-1])

    def evaluate_last(self) -> bool:
        """Evaluate after the last step, if Lightning has stopped inside an epoch and has not; returns whether it did."""
        if not self.history or self.headline in self.history[-1]:
            return False
        figures = self.history.pop()
        self.trainer.validate(self, verbose=False)
        self._add(figures | {f"test/{name}": value for name, value in self.test_figures().items()})
        return True

    def _add(self, figures: dict[str, float]) -> None:
        self.history.append(figures)
        if self.headline in figures:
            self.replay(len(self.history) - 1)

    def best_epoch(self) -> int:
        """The epoch with the best headline figure, counted from 1; the first of several that are equal."""
        sign = 1 if FIGURES[self.task.headline].better == "lower" else -1
        return 1 + min(
            range(len(self.history)), key=lambda epoch: sign * self.history[epoch].get(self.headline, sign * math.inf)
        )

    def replay(self, first: int = 0) -> None:
        """Write the curves of the epochs from `first` on to TensorBoard, and the best headline figure until each."""
        if self.logger is None:
            return
        better = min if FIGURES[self.task.headline].better == "lower" else max
        for epoch in range(first + 1, len(self.history) + 1):
            figures = self.history[epoch - 1]
            if self.headline in figures:
                curves = {name: value for name, value in figures.items() if name != "test/images"}
                tested = (past[self.headline] for past in self.history[:epoch] if self.headline in past)
                curves[f"best/{self.task.headline}"] = better(tested)
                self.logger.log_metrics(curves, step=epoch)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over what has been recorded until a checkpoint, and write its curves to TensorBoard."""
        self.history = list(checkpoint["history"])
        self.step_losses = [(step, loss) for step, loss in checkpoint.get("step_losses", [])]
        self.replay()
        if self.logger is not None:
            for step, loss in self.step_losses:
                self.logger.log_metrics({STEP_LOSS: loss}, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what has been recorded, and the states of the random generators that layers such as dropout use.

        Raises:
            Diverged: if the last loss that was recorded is not finite; such weights are not worth keeping.
        """
        self._read_loss()
        checkpoint["history"] = self.history
        checkpoint["step_losses"] = self.step_losses
        checkpoint["rng"] = torch.get_rng_state()
        if torch.cuda.is_available() and self.device.type == "cuda":
            checkpoint["cuda_rng"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history and the states of the random generators."""
        self.history = list(checkpoint["history"])
        self.step_losses = [(step, loss) for step, loss in checkpoint.get("step_losses", [])]
        torch.set_rng_state(checkpoint["rng"])
        if "cuda_rng" in checkpoint and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint["cuda_rng"])
