"""Lightning's trainer for a run, and the ranks as Lightning sees them.

Importing Lightning takes seconds, so whatever only checks a config does not import this module.
"""

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from bam_exp.machine import Machine, ranks
from bam_exp.training.checkpoints import Checkpoints


def make_trainer(
    machine: Machine,
    folder: Path,
    *,
    logger: Logger | Literal[False],
    callbacks: list[pl.Callback],
    fingerprint: str | None = None,
    **limits: Any,
) -> pl.Trainer:
    """A Lightning trainer for one run on a machine; its checkpoints belong to `fingerprint`, `limits` are those of its task."""
    alone = ranks.size() == 1
    return pl.Trainer(
        accelerator="gpu" if machine.uses_gpu else "cpu",
        devices=1,
        num_nodes=ranks.size(),
        # The buffers are either the same on all ranks or each rank's own.
        strategy="auto" if alone else DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
        precision="bf16-mixed" if machine.precision_used == "bfloat16" else "32-true",
        default_root_dir=folder,
        logger=logger,
        callbacks=callbacks,
        # Under SLURM, submitit requeues, not Lightning.
        plugins=[Checkpoints(folder, fingerprint), LightningEnvironment() if alone else Environment()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1_000_000,  # nothing is logged in a step: curves are per epoch
        deterministic="warn" if machine.deterministic else None,
        **limits,
    )


class Environment(ClusterEnvironment):
    """Tells Lightning that every rank is a node with one device, and that all of them have been started."""

    creates_processes_externally = True
    main_address, main_port = "", 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return ranks.size()

    def set_world_size(self, size: int) -> None:
        """Do nothing: it is known."""

    def global_rank(self) -> int:
        return ranks.rank()

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: it is known."""

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return ranks.rank()
