"""When a run saves a checkpoint."""

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from bam_exp.machine import Machine, ranks
from bam_exp.machine.interruption import Interrupted, Interruption


class CheckpointSaver(Checkpoint):
    """Saves the run at the end of epochs, every so many minutes, and before it stops because it was told to.

    It never saves at the last batch of an epoch, because a run that resumes from there makes Lightning run extra steps; the
    end of the epoch is a moment later.
    """

    def __init__(self, machine: Machine, interruption: Interruption) -> None:
        super().__init__()
        self.epochs = machine.checkpoint_epochs
        self.interval = timedelta(minutes=machine.checkpoint_minutes).total_seconds()
        self.interruption = interruption
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handlers, which end a run with exit code 0."""
        self.interruption.listen()
        self.saved = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save inside an epoch when it is time or when told to stop."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        due = time.monotonic() - self.saved > self.interval
        self._save(trainer, due=due)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save every `checkpoint_epochs`, at the end of training and when told to stop."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        self._save(trainer, due=last or (trainer.current_epoch + 1) % self.epochs == 0)

    def _save(self, trainer: pl.Trainer, *, due: bool) -> None:
        """Save on all ranks, if it is due or one of them was told to stop."""
        number = self.interruption.number if self.interruption.requested else None
        stop, save = ranks.all_reduce_max(number or 0, due)
        if stop or save:
            trainer.save_checkpoint(trainer.default_root_dir)
            self.saved = time.monotonic()
        if stop:
            raise Interrupted(stop)
