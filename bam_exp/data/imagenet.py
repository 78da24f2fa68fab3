"""ImageNet-1K (Russakovsky et al. 2015, ILSVRC 2012), and any folder of photos laid out as it is."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from bam_exp.schema import checked

TRAIN_SIZE, TEST_SIZE = 1_281_167, 50_000


class ImageNet:
    """Being written."""

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    train_size, test_size = TRAIN_SIZE, TEST_SIZE
    digest = "imagenet"

    @checked
    def __init__(
        self,
        root: Path,
        *,
        size: PositiveInt = 224,
        classes: PositiveInt = 1000,
        broken: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        self.root, self.size, self.num_classes, self.broken = root, size, classes, broken

    def prepare(self) -> None:
        """Check the folders."""
