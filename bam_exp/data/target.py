"""The ground truth that belongs to one image of a batch for a detector."""

from typing import NamedTuple

from torch import Tensor


class Target(NamedTuple):
    """The objects of one image, in pixels of the network's input."""

    number: int
    """Place of the image in its split."""
    size: tuple[int, int]
    """Height and width of the image in the batch; beyond it there is padding."""
    boxes: Tensor
    """float32 n x 4: x1, y1, x2, y2, half open."""
    labels: Tensor
    """int64 n: 1 ... classes; 0 is the background."""
    seed: int = 0
    """Of what training draws for this image: a function of the run's seed, the epoch and the number of the image."""
