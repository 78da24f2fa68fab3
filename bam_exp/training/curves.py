"""The events that a run writes for TensorBoard."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from bam_exp.config import NAMED
from bam_exp.runs.folder import EVENTS
from bam_exp.runs.run import Run
from bam_exp.tasks.learner import Learner
from bam_exp.training.events import EventWriter


class Curves(TensorBoardLogger):
    """The event file of one run, in the run's folder. `close` closes it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        for old in folder.glob(EVENTS):
            old.unlink()  # of an interrupted start: its curves are in the checkpoint and are written again

    @property
    def experiment(self) -> EventWriter:
        """The writer of the event file, which is made at the first call.

        Its methods raise WriteError, naming the file, if it cannot be written.
        """
        if self._experiment is None:
            self._experiment = EventWriter(self.log_dir)
        return cast(EventWriter, self._experiment)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a point to each of some curves. (Lightning's method reports a full disk as a value that cannot be logged.)"""
        for name, value in metrics.items():
            self.experiment.add_scalar(name, float(value), step)

    def save(self) -> None:
        """Write no hparams.yaml: result.json has the config."""

    def finalize(self, status: str) -> None:
        """Close the file of a run that failed. After a training that did not, the final figures are still to come."""
        if status != "success" and self._experiment is not None:
            self._experiment.close()

    def describe(self, run: Run) -> None:
        """Write the command and the resolved config as text."""
        self.experiment.add_text("command", f"    {run.command}")
        config = json.dumps(run.figures_from, indent=1)
        self.experiment.add_text("config", "\n".join(f"    {line}" for line in config.splitlines()))

    def show(self, picture: bytes) -> None:
        """Add a picture, a PNG, to the Images tab."""
        pixels = np.array(Image.open(io.BytesIO(picture)).convert("RGB"))
        self.experiment.add_image("test", pixels, dataformats="HWC")

    def close(self, settings: Mapping[str, Any]) -> None:
        """Fill the HParams tab with these settings and close the file.

        Lightning's `log_hyperparams` would write figures as charts of one point. The summary of an experiment, with which PyTorch
        begins, is left out: TensorBoard would take the columns of all runs from that of the first, which may have no attention.
        Without it the columns are those of every run, those that differ between the runs first.
        """
        _, *summaries = hparams(dict(settings), {})  # type: ignore[no-untyped-call]
        for summary in summaries:
            self.experiment.file_writer.add_summary(summary)
        self.experiment.close()


def settings_of(run: Run, params: int) -> dict[str, bool | int | float | str]:
    """A run's settings for the HParams tab: the choices by name, their arguments as numbers where they are numbers."""
    settings: dict[str, bool | int | float | str] = {"seed": run.seed, "params": params}
    for group in NAMED:
        choice = run.chosen.group(group)
        settings[group] = choice.name
        for key, value in choice.arguments.items():
            settings[f"{group}.{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return settings


class SampleImages(pl.Callback):
    """Shows images of the first batch in TensorBoard, as the network sees them: cropped and mirrored, not normalised."""

    shown = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the images of the first batch of this process, once."""
        if self.shown:
            return
        self.shown = True
        images = cast(Learner, pl_module).sample_images(batch)
        if images is not None and isinstance(trainer.logger, Curves):
            trainer.logger.experiment.add_images("train/images", images, trainer.global_step)
