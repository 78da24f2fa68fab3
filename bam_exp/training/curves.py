"""The curves of a run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from bam_exp.runs.folder import EVENTS


class Curves(TensorBoardLogger):
    """The event file of one run, in the run's folder. `close` closes it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        for old in folder.glob(EVENTS):
            old.unlink()  # of an interrupted start: its curves are in the checkpoint and are written again

    def save(self) -> None:
        """Write no hparams.yaml: result.json has the config."""

    def finalize(self, status: str) -> None:
        """Do nothing: Lightning calls this before the final figures are logged."""

    def close(self, choices: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Fill the HParams tab and close the file."""
        self.log_hyperparams(dict(choices), dict(figures))
        self.experiment.close()
