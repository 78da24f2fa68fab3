"""Scenes: a small data set for detection that the package draws itself, without a download."""

import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from bam_exp.data.annotations import Annotations, Box, Row
from bam_exp.data.batches import Batches
from bam_exp.data.dataset import Split
from bam_exp.data.drawing import SHAPES, Bytes, Canvas, Integers, Mask, Numbers, paint, with_noise
from bam_exp.data.target import Target
from bam_exp.schema import checked

VERSION = 1  # of the drawing: raised with any change of a pixel or a box

_SIZE = 64
_CANVAS = Canvas(_SIZE)
_OBJECTS, _TRIES = 4, 8
_RADII = (4, 12)  # half open
_BARS = 5
_WORDS = 12 + 8 * _BARS + _OBJECTS * (3 * _TRIES + 8) + 1  # random words of a picture, noise apart
_NOISE_WORDS = 3 * _SIZE * _SIZE // 8
_CHUNK = 100  # pictures drawn at once


class Drawn(NamedTuple):
    """The pictures of a split and their objects."""

    images: Tensor
    """uint8 N x 3 x 64 x 64."""
    annotations: Annotations


class Scenes:
    """One to four striped discs, squares, triangles, crosses and rings, which do not overlap, in a picture of 64 x 64.

    They are 7 to 23 pixels wide and of any colour, on a colour gradient with five bars under noise. The pixels and boxes
    of a picture are a function of (seed, split, index) alone, by Philox's raw numbers and integer arithmetic: the same on
    every machine. An object that finds no free place in eight tries is left out. `flip` mirrors half of the training
    pictures. `root` is not used.
    """

    reads = ()
    task = "detection"
    protocol = "coco"
    num_classes = len(SHAPES)
    size = _SIZE
    mean = (0.38, 0.38, 0.38)
    std = (0.15, 0.15, 0.15)

    @checked
    def __init__(
        self,
        root: Path,
        *,
        seed: NonNegativeInt = 0,
        train_size: PositiveInt = 2_000,
        test_size: PositiveInt = 400,
        flip: bool = True,
    ) -> None:
        self.seed, self.train_size, self.test_size, self.flip = seed, train_size, test_size, flip
        self.digest = f"scenes version {VERSION}, seed {seed}, {train_size} + {test_size} images"

    def prepare(self) -> None:
        """Nothing to do: there are no files."""

    def class_names(self) -> list[str]:
        """Names of the shapes in the order of the labels, which begin with 1."""
        return list(SHAPES)

    def annotations(self, split: Split) -> Annotations:
        """The objects of a split."""
        return self.load(split).annotations

    def load(self, split: Split) -> Drawn:
        """Draw a split: 2,000 pictures in about 2 s."""
        return _drawn(self.seed, split, self.train_size if split == "train" else self.test_size)

    def loader(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
    ) -> "SceneLoader":
        """Batches of a split on a device.

        Raises:
            ValueError: if the batches cannot be shared by so many processes.
        """
        train = split == "train"
        return SceneLoader(
            self.load(split), self, train=train, batch_size=batch_size, seed=seed, device=device, rank=rank,
            world_size=world_size,
        )  # fmt: skip


class SceneLoader(Batches[list[Target]]):
    """Normalised pictures on the device and a list of targets; order and mirror images are a function of (seed, epoch, index)."""

    def __init__(
        self,
        drawn: Drawn,
        data: Scenes,
        *,
        train: bool,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        count = len(drawn.images)
        super().__init__(count, batch_size=batch_size, seed=seed, shuffle=train, rank=rank, world_size=world_size)
        self.device, self.flip = torch.device(device), data.flip and train
        mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (data.mean, data.std))
        images = drawn.images.float().div_(255).sub_(mean).div_(std)
        self._images = images.to(self.device, memory_format=torch.channels_last)
        objects = [drawn.annotations.to_train_on(i, difficult=True) for i in range(count)]
        self._objects = [(boxes.to(self.device), labels.to(self.device)) for boxes, labels in objects]

    def __iter__(self) -> Iterator[tuple[Tensor, list[Target]]]:
        # A generator, whose body waits for the first batch: Lightning calls iter() before it announces the epoch.
        self._batch, self._first_batch = self._first_batch, 0
        began = time.perf_counter()
        generator = self._generator()
        mirrored = torch.randint(1 + self.flip, (self.count,), generator=generator).bool()
        order = self._order(generator)
        for batch in range(self._batch, len(self)):
            share = order[self._share(batch)]
            images = self._images[share.to(self.device)].contiguous(memory_format=torch.channels_last)
            targets = []
            for image, index in zip(images, share.tolist(), strict=True):
                boxes, labels = self._objects[index]
                if mirrored[index]:
                    image.copy_(image.flip(2))
                    boxes = (boxes - boxes.new_tensor([_SIZE, 0, _SIZE, 0])).abs()[:, [2, 1, 0, 3]]
                targets.append(Target(index, (_SIZE, _SIZE), boxes, labels, self._seed_of(index)))
            self._batch = batch + 1
            self.waited += time.perf_counter() - began
            yield images, targets
            began = time.perf_counter()


@lru_cache(maxsize=4)
def _drawn(seed: int, split: Literal["train", "test"], count: int) -> Drawn:
    # Raw words: NumPy keeps these over its versions, which it does not promise for a Generator's methods.
    stream = np.random.Philox(key=np.array([seed, split == "test"], dtype=np.uint64))
    images = np.empty((count, 3, _SIZE, _SIZE), dtype=np.uint8)
    rows: list[list[Row]] = []
    for first in range(0, count, _CHUNK):
        part = images[first : first + _CHUNK]
        raw = stream.random_raw(len(part) * (_WORDS + _NOISE_WORDS)).reshape(len(part), -1)
        noise = raw[:, _WORDS:].astype("<u8").view(np.uint8).reshape(part.shape)
        part[:], objects = _draw_pictures(len(part), Numbers(raw[:, :_WORDS]), noise)
        rows += objects
    names = [(f"{split}-{i}", i, _SIZE, _SIZE) for i in range(count)]
    return Drawn(torch.from_numpy(images), Annotations.of(names, rows))


def _draw_pictures(count: int, numbers: Numbers, noise: Bytes) -> tuple[Bytes, list[list[Row]]]:
    """Pictures N x 3 x 64 x 64, and of each its objects as `Annotations.of` takes them."""
    picture = _CANVAS.gradient([numbers.colour(30, 170) for _ in range(4)])
    for _ in range(_BARS):
        bar = _CANVAS.bar(numbers.below(_SIZE), numbers.below(_SIZE), numbers.direction(), 2 + numbers.below(16))
        paint(picture, bar, numbers.colour(20, 190))
    wanted = 1 + numbers.below(_OBJECTS)
    placed: list[tuple[Integers, Integers, Integers]] = []
    objects: list[list[Row]] = [[] for _ in range(count)]
    for i in range(_OBJECTS):
        x, y, radius = _place(numbers, placed, there=wanted > i)
        placed.append((x, y, radius))
        kind = numbers.below(len(SHAPES))
        shape = _CANVAS.shape(kind, x, y, radius) & (radius > 0)[:, None, None]
        _CANVAS.paint_striped(picture, shape, x, y, numbers)
        for rows, mask, label in zip(objects, shape, kind.tolist(), strict=True):
            if mask.any():
                rows.append((_box(mask), label + 1, float(mask.sum()), False, False))
    return with_noise(picture, noise), objects


def _place(
    numbers: Numbers, placed: list[tuple[Integers, Integers, Integers]], *, there: npt.NDArray[np.bool_]
) -> tuple[Integers, Integers, Integers]:
    """Centre and radius of one more object in each picture; the radius is 0 where there is none, or no place for it."""
    low, high = _RADII
    x = y = radius = np.zeros(len(there), dtype=np.int32)
    for _ in range(_TRIES):
        new_radius = low + numbers.below(high - low)
        room = _SIZE - 2 * new_radius - 2
        new_x, new_y = (1 + new_radius + numbers.below(room) for _ in range(2))
        free = there & (radius == 0)
        for other_x, other_y, other_radius in placed:
            apart = new_radius + other_radius + 2
            clear = (np.abs(new_x - other_x) >= apart) | (np.abs(new_y - other_y) >= apart)
            free &= clear | (other_radius == 0)
        x, y, radius = (np.where(free, new, old) for new, old in ((new_x, x), (new_y, y), (new_radius, radius)))
    return x, y, radius


def _box(mask: Mask) -> Box:
    """The smallest box around the pixels of a mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
