"""What Lightning is given for a run: its trainer, the ranks as it knows them, and the callback that saves.

Whatever only checks a config does without this module: importing Lightning takes seconds.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from bam_exp.machine.interruption import Interrupted, Interruption
from bam_exp.machine.machine import Machine, ranks
from bam_exp.training.checkpoints import Checkpoints
from bam_exp.training.progress import BetweenSteps


def trainer_for(
    here: Machine, folder: Path, *, logger: Logger | Literal[False], callbacks: list[pl.Callback], **limits: Any
) -> pl.Trainer:
    """A Lightning trainer for one run on a machine; `limits` are `max_epochs` and `max_steps`."""
    alone = ranks.size() == 1
    return pl.Trainer(
        accelerator="gpu" if here.uses_gpu else "cpu",
        devices=1,
        num_nodes=ranks.size(),
        # The buffers are either the same on all ranks or each rank's own.
        strategy="auto" if alone else DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
        precision="bf16-mixed" if here.precision_used == "bfloat16" else "32-true",
        default_root_dir=folder,
        logger=logger,
        callbacks=callbacks,
        # Under SLURM, submitit requeues, not Lightning.
        plugins=[Checkpoints(folder), LightningEnvironment() if alone else Environment()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1_000_000,  # nothing is logged in a step: curves are per epoch
        deterministic="warn" if here.deterministic else None,
        **limits,
    )


class Environment(ClusterEnvironment):
    """Tells Lightning that every rank is a machine with one device, and that all have been started."""

    creates_processes_externally = True
    main_address, main_port = "", 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return ranks.size()

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        return ranks.rank()

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return ranks.rank()


class Keeper(BetweenSteps):
    """Saves the run at the end of epochs, every so many minutes, and before it goes when it is told to stop.

    It never saves at the last batch of an epoch: resuming from there makes Lightning run extra steps; the epoch's end is a
    moment later.
    """

    def __init__(self, machine: Machine, interruption: Interruption) -> None:
        super().__init__()
        self.epochs = machine.checkpoint_epochs
        self.interval = timedelta(minutes=machine.checkpoint_minutes).total_seconds()
        self.interruption = interruption
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, whose handlers end a run with exit code 0."""
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
        """Save and act alike on all ranks, if it is due or one of them was told to stop."""
        number = self.interruption.number if self.interruption.came else None
        stop, save = ranks.largest(number or 0, due)
        if stop or save:
            trainer.save_checkpoint(trainer.default_root_dir)
            self.saved = time.monotonic()
        if stop:
            raise Interrupted(stop)
