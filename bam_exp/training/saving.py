"""The callback that saves checkpoints."""

import time
from datetime import timedelta
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from bam_exp.machine import Machine, ranks
from bam_exp.machine.interruption import Interrupted, Interruption
from bam_exp.training.writing import CheckpointWriter

AGREE_S = 1.0
"""Seconds between two steps at which the ranks of a run agree whether to save or to stop."""


class CheckpointSaver(Checkpoint):
    """Saves the run every so many minutes, at its end, and before it stops because it was told to.

    Training goes on while a thread writes; an error of the thread ends the run at the next batch. It never saves at the last
    batch of an epoch, because a run that resumes from there makes Lightning run extra steps; the end of the epoch is a moment
    later.
    """

    def __init__(self, machine: Machine, interruption: Interruption) -> None:
        super().__init__()
        self.interval = timedelta(minutes=machine.checkpoint_minutes).total_seconds()
        self.interruption = interruption
        self.saved = time.monotonic()
        self.agreement = _Agreement()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handlers, which end a run with exit code 0."""
        self.interruption.listen()
        self.saved = time.monotonic()
        self.agreement.start(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save inside an epoch when it is time or when told to stop."""
        writer(trainer).check()
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or not self.agreement.is_due(trainer.global_step):
            return
        self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of training, when it is time and when told to stop."""
        self._save(trainer, last=trainer.current_epoch + 1 == trainer.max_epochs or trainer.should_stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait until the last checkpoint is written."""
        writer(trainer).finish()

    def _save(self, trainer: pl.Trainer, *, last: bool = False) -> None:
        """Save on all ranks, if rank 0 finds that it is time or one of them was told to stop."""
        number = self.interruption.number if self.interruption.requested else None
        passed = time.monotonic() - self.saved > self.interval and not writer(trainer).is_writing
        stop, save = self.agreement.reach(trainer.global_step, number or 0, last or (passed and ranks.rank() == 0))
        if stop or save:
            trainer.save_checkpoint(trainer.default_root_dir)
            self.saved = time.monotonic()
        if stop:
            writer(trainer).finish()
            ranks.all_reduce_max(0)  # the launcher ends the others once one of them has exited
            raise Interrupted(stop)


def writer(trainer: pl.Trainer) -> CheckpointWriter:
    """What writes the checkpoints of a trainer of `make_trainer`."""
    return cast(CheckpointWriter, trainer.strategy.checkpoint_io)


class _Agreement:
    """The steps at which the ranks agree: the same on every rank, about `AGREE_S` seconds apart, with no exchange in between.

    A process that is alone agrees with itself at every step.
    """

    def start(self, step: int) -> None:
        self.step, self.next, self.time = step, step + 1, time.monotonic()

    def is_due(self, step: int) -> bool:
        return ranks.size() == 1 or step >= self.next

    def reach(self, step: int, *values: int) -> list[int]:
        """Element-wise maximum of the values over all ranks, with which they also agree on the next step of this kind."""
        if ranks.size() == 1:
            return list(values)
        now = time.monotonic()
        steps, seconds = step - self.step, now - self.time
        # At most twice as many steps as before: the first steps say little about the later ones.
        ahead = max(1, min(2 * steps, int(AGREE_S * steps / seconds)))
        *agreed, ahead = ranks.all_reduce_max(*values, ahead)
        self.step, self.next, self.time = step, step + ahead, now
        return agreed
