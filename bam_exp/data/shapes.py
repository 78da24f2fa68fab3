"""Shapes: a small data set that the package draws itself, so that every command can be tried without a download."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from bam_exp.data.dataset import Split
from bam_exp.data.drawing import SHAPES, Bytes, Canvas, Integers, Mask, Numbers, paint, with_noise
from bam_exp.data.on_device import OnDevice
from bam_exp.schema import checked

PLACES = ("above", "below", "beside", "inside")
VERSION = 1  # of the drawing; any change of a pixel raises it

_MARGIN = 2  # pixels between the target and the border

_CLUTTER = {"much": (4, 3, 5), "little": (2, 1, 2)}
"""The numbers of bars, of shapes without the white dot and of dots of other colours in a picture."""

_DRAWS = 128  # random words per image for everything but the noise
_CHUNK = 250  # images drawn at once: the working set stays in the cache


class Shapes(OnDevice):
    """20 classes, each a *what* and a *where*: which shape has the white dot, and on which side of it the dot lies.

    The target is a striped disc, square, triangle, cross or ring of any colour, 7 to 15 pixels wide, anywhere in the
    32 x 32 picture, with one white dot above, below, beside or inside it. Around it are three more such shapes without a
    white dot, five dots of other colours and four bars, on a colour gradient under noise. A network must therefore tell
    the white dot from the others by its colour (channels) and relate it to a shape (space); without the dot, the shapes in
    a picture reveal almost nothing about its class. A horizontal flip keeps the label, and so does a crop with `pad` up to
    2, which leaves the target whole.

    Classes are equally frequent: image i belongs to class i % 20. Its pixels are a function of (seed, split, i) alone,
    computed from Philox's raw numbers by integer arithmetic, so that they are the same on every machine and for any size of
    the splits. `mean` and `std` are those of the training set's pixels, scaled to 0 ... 1.

    Args:
        root: not used, because there are no files.
        seed: of the drawing.
        train_size, test_size: images of each split, multiples of 20.
        size: height and width of a picture; shapes and dots are as large in a small one.
        clutter: "much" is what is said above; "little" is one more shape, two dots and two bars.
        pad, flip: augmentation of the training set, as in `DeviceLoader`.
    """

    reads = ()
    num_classes = len(SHAPES) * len(PLACES)
    mean = (0.37, 0.37, 0.37)
    std = (0.19, 0.19, 0.19)

    @checked
    def __init__(
        self,
        root: Path,
        *,
        seed: NonNegativeInt = 0,
        train_size: Annotated[int, Field(gt=0, multiple_of=20)] = 10_000,
        test_size: Annotated[int, Field(gt=0, multiple_of=20)] = 2_000,
        pad: Annotated[int, Field(ge=0, le=_MARGIN)] = 2,
        flip: bool = True,
        size: Literal[24, 32] = 32,
        clutter: Literal["much", "little"] = "much",
    ) -> None:
        self.seed, self.train_size, self.test_size, self.pad, self.flip = seed, train_size, test_size, pad, flip
        self.size, self.clutter = size, clutter
        self.digest = f"shapes version {VERSION}, seed {seed}, {train_size} + {test_size} images"
        if (size, clutter) != (32, "much"):
            self.digest += f" of {size} pixels, {clutter} clutter"

    def prepare(self) -> None:
        """Do nothing: there are no files."""

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        """Draw a split, 10,000 images in about 2 s: images uint8 N x 3 x size x size, and labels int64 N."""
        images, _, labels = self._draw(split)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def masks(self, split: Split) -> Tensor:
        """Return the masks of the targets (shape and white dot), bool N x size x size, in the order of `load`."""
        return torch.from_numpy(self._draw(split)[1])

    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels: `disc-above`, `disc-below`, ..."""
        return [f"{kind}-{place}" for kind in SHAPES for place in PLACES]

    def _draw(self, split: Split) -> tuple[Bytes, Mask, npt.NDArray[np.int64]]:
        count, size = self.train_size if split == "train" else self.test_size, self.size
        noise_words, canvas = 3 * size**2 // 8, Canvas(size)
        # NumPy guarantees raw words not to change between versions, unlike the methods of a Generator.
        stream = np.random.Philox(key=np.array([self.seed, split == "test"], dtype=np.uint64))
        images = np.empty((count, 3, size, size), dtype=np.uint8)
        masks = np.empty((count, size, size), dtype=np.bool_)
        labels = np.arange(count, dtype=np.int64) % self.num_classes
        for first in range(0, count, _CHUNK):
            chunk = slice(first, first + _CHUNK)
            shape = images[chunk].shape
            raw = stream.random_raw(shape[0] * (_DRAWS + noise_words)).reshape(shape[0], -1)
            noise = raw[:, _DRAWS:].astype("<u8").view(np.uint8).reshape(shape)
            images[chunk], masks[chunk] = _draw_pictures(
                canvas, labels[chunk].astype(np.int32), Numbers(raw[:, :_DRAWS]), noise, _CLUTTER[self.clutter]
            )
        return images, masks, labels


def _draw_pictures(
    canvas: Canvas, label: Integers, numbers: Numbers, noise: Bytes, clutter: tuple[int, int, int]
) -> tuple[Bytes, Mask]:
    """Draw pictures of the given classes, N x 3 x size x size, and the masks of their targets, N x size x size."""
    size, (bars, decoys, dots) = canvas.size, clutter
    kind, place = label // len(PLACES), label % len(PLACES)
    # The position of the white dot relative to the shape's centre, and then the places where both fit into the picture.
    radius, side, slip = 4 + numbers.below(4), 2 * numbers.below(2) - 1, numbers.below(3) - 1
    gap, centre = radius + 3, np.zeros_like(radius)
    dot_x = np.choose(place, [slip, slip, side * gap, centre])
    dot_y = np.choose(place, [-gap, gap, slip, centre])
    x, y = (
        _MARGIN + before + numbers.below(size - 2 * _MARGIN - before - after)
        for before, after in ((np.maximum(radius, 1 - dot), np.maximum(radius, 1 + dot)) for dot in (dot_x, dot_y))
    )
    dot_x, dot_y = dot_x + x, dot_y + y

    picture = canvas.gradient([numbers.colour(30, 170) for _ in range(4)])
    for _ in range(bars):
        bar = canvas.bar(numbers.below(size), numbers.below(size), numbers.direction(), 1 + numbers.below(10))
        paint(picture, bar, numbers.colour(20, 190))
    for decoy in range(decoys):
        # At least 12 pixels from the white dot in x or in y, so that it is clearly not the shape that has the dot.
        far, anywhere = 12 + numbers.below(size - 23), numbers.below(size)
        decoy_x, decoy_y = (dot_x + far, anywhere) if decoy % 2 == 0 else (anywhere, dot_y + far)
        decoy_x, decoy_y = decoy_x % size, decoy_y % size
        shape = canvas.shape(numbers.below(len(SHAPES)), decoy_x, decoy_y, 4 + numbers.below(4))
        canvas.paint_striped(picture, shape, decoy_x, decoy_y, numbers)
    for _ in range(dots):
        # With one channel full and another off, a dot is as bright as the white one but never white.
        colour, full, off = numbers.colour(0, 256), numbers.below(3), 1 + numbers.below(2)
        rows = np.arange(len(colour))
        colour[rows, full], colour[rows, (full + off) % 3] = 255, 0
        paint(picture, canvas.dot(numbers.below(size), numbers.below(size)), colour)
    shape = canvas.shape(kind, x, y, radius)
    canvas.paint_striped(picture, shape, x, y, numbers)
    dot = canvas.dot(dot_x, dot_y)
    paint(picture, dot, np.full((1, 3), 255, dtype=np.int32))

    return with_noise(picture, noise), shape | dot
