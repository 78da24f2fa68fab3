"""The contract of a data set."""

from typing import Literal, Protocol

import torch

from bam_exp.data.batches import Batches

Split = Literal["train", "test"]


class DataSet(Protocol):
    """A data set, as the rest of the package uses it.

    A data set is constructed as `Kind(root, *, ...)`, where `root` is the run's `data_root` and the keyword-only parameters
    are the keys of its config in `conf/data`. The constructor checks its arguments and reads no file, because configs are
    also checked, and finished runs reported, on machines without the data.

    A data set may say in `reads`, a tuple of names in `root`, which files and folders its digest and its sizes follow from,
    if they are there. Both are then kept between commands wherever none of them is.
    """

    @property
    def num_classes(self) -> int:
        """Number of classes, which is the number of outputs of a network."""

    @property
    def size(self) -> int:
        """Height and width of an image in pixels, as the network receives it."""

    @property
    def train_size(self) -> int:
        """Number of images in the training set."""

    @property
    def test_size(self) -> int:
        """Number of images in the test set."""

    @property
    def digest(self) -> str:
        """Identifies the images and labels in a run's fingerprint: equal digests promise equal data. Raises DataError."""

    def prepare(self) -> None:
        """Check that the data is there and whole, downloading nothing; a second call is quick. Raises DataError."""

    def class_names(self) -> list[str]:
        """Human-readable names of the classes, in the order of the labels. Raises DataError."""

    def loader(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
    ) -> Batches:
        """Return the batches of a split: the training set shuffled and augmented, the test set plain and in order.

        Raises DataError for missing or damaged data, ValueError for a batch size that the ranks cannot share.
        """
