"""Lightning's trainer for a run, and the ranks as Lightning sees them.

Importing Lightning takes seconds, so whatever only checks a config does not import this module.
"""

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from bam_exp.machine import Machine, ranks
from bam_exp.training.writing import CheckpointWriter


class OneDevice(TorchElasticEnvironment):
    """torchrun's environment, in which each rank sees its own device only (as with torchrun's `--virtual-local-rank`)."""

    def local_rank(self) -> int:
        """0, which is also the index of the only device that this process sees."""
        return 0


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
        # Neither is Lightning's SLURM environment, which would requeue jobs; submitit does that.
        plugins=[CheckpointWriter(folder, fingerprint), LightningEnvironment() if alone else OneDevice()],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1_000_000,  # nothing is logged in a step: curves are per epoch
        deterministic="warn" if machine.deterministic else None,
        **limits,
    )
