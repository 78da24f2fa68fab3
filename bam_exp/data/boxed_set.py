"""The part that the data sets of photos with boxes share: their arguments and their loader."""

from pathlib import Path
from typing import Any, Literal
from typing import Protocol as TypingProtocol

import torch

from bam_exp.data.annotations import Annotations
from bam_exp.data.box_loader import BoxLoader
from bam_exp.data.boxes import View
from bam_exp.data.dataset import DataSet, Split

Fit = Literal["square", "short_side"]
Augment = Literal["ssd", "flip", "none"]
Protocol = Literal["coco", "voc07", "voc"]


class DetectionSet(DataSet, TypingProtocol):
    """The contract of a data set for detection, whose loader yields images and a list of targets (`data.target.Target`)."""

    @property
    def protocol(self) -> Protocol:
        """The protocol by which detections are evaluated."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that the images are normalised by, of pixels in 0 ... 1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that the images are normalised by."""

    def annotations(self, split: Split) -> Annotations:
        """The objects of a split in pixels of its photos. Raises DataError."""


class BoxedSet:
    """A data set for detection: photos on disk, and the objects in them.

    `protocol` says how detections are judged: "coco", mean average precision over ten overlaps; "voc07", over eleven
    recalls at an overlap of 0.5; "voc", the area under the curve at 0.5.
    """

    task = "detection"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    difficult = False

    num_classes: int
    protocol: Protocol
    size: int

    def __init__(self, *, size: int, fit: Fit, long_side: int, augment: Augment) -> None:
        self.size = size
        self._views = {
            "train": View(size, fit, long_side, augment),
            "test": View(size, fit, long_side, "none"),
        }

    @property
    def digest(self) -> str:
        """Identifies the data in a run's fingerprint."""
        raise NotImplementedError

    @property
    def train_size(self) -> int:
        """Photos to train on, those without objects included."""
        raise NotImplementedError

    @property
    def test_size(self) -> int:
        """Photos to test on."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Look for every photo and at every box.

        Raises:
            DataError: naming what is missing or wrong.
        """
        raise NotImplementedError

    def annotations(self, split: Split) -> Annotations:
        """The objects of a split.

        Raises:
            DataError: if a file is missing or damaged.
        """
        raise NotImplementedError

    def folder(self, split: Split) -> Path:
        """The one that holds the photos of a split."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        """Names of the classes in the order of the labels, which begin with 1."""
        raise NotImplementedError

    def loader(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> BoxLoader:
        """Batches of a split on a device.

        Raises:
            DataError: if the annotations cannot be read.
            ValueError: if the batches cannot be shared by so many processes.
        """
        keywords: dict[str, Any] = {"mean": self.mean, "std": self.std, "workers": workers}
        return BoxLoader(
            self.annotations(split),
            self.folder(split),
            self._views[split],
            train=split == "train",
            difficult=self.difficult,
            batch_size=batch_size,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            **keywords,
        )
