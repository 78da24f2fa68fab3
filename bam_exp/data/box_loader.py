"""Batches of photos with boxes, read from disk and augmented by worker processes."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bam_exp.data.annotations import Annotations
from bam_exp.data.batches import Batches
from bam_exp.data.boxes import Sample, View, sample, transforms
from bam_exp.data.photos.crops import decoded, read
from bam_exp.data.photos.loader import default_workers
from bam_exp.data.photos.workshop import _identity, _init_worker
from bam_exp.data.target import Target
from bam_exp.errors import DataError

MULTIPLE = 32
"""Inputs of different sizes are padded to a multiple of so many pixels."""


class BoxLoader(Batches[list[Target]]):
    """The batches of a split for a detector: images float32 N x 3 x H x W, channels last, and a list of N targets.

    Order and augmentation are a function of (seed, epoch, index): the batches are the same on any number of workers,
    and the shares of several processes together are the batches of one. Where inputs differ in size they are padded
    with zeros at the right and at the bottom to the largest of the whole batch.

    Args:
        annotations: the images of the split and their objects.
        folder: the one that holds the images.
        view: how a photo becomes an input.
        train: shuffled and augmented; otherwise in order, as they are.
        difficult: whether difficult objects are trained on.
        mean, std: per channel, of pixels in 0 ... 1.
        workers: processes; 0 does the work in this one; None chooses.

    Raises:
        DataError: while iterating, if a photo cannot be decoded or has another size than its annotation says.
    """

    def __init__(
        self,
        annotations: Annotations,
        folder: Path,
        view: View,
        *,
        train: bool,
        difficult: bool,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        count = len(annotations)
        super().__init__(count, batch_size=batch_size, seed=seed, shuffle=train, rank=rank, world_size=world_size)
        transforms()  # imported before worker processes are forked, which each epoch starts anew
        self.annotations, self.view = annotations, view
        self.device = torch.device(device)
        self.workers = default_workers(self.device, world_size) if workers is None else workers
        self.dataset = BoxedPhotos(annotations, folder, view, seed, difficult=difficult)
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(3, 1, 1) for values in (mean, std)
        )

    def __iter__(self) -> Iterator[tuple[Tensor, list[Target]]]:
        # A generator, whose body waits for the first batch: Lightning calls iter() before it announces the epoch.
        self._batch, self._first_batch = self._first_batch, 0
        order = self._order(self._generator()).numpy()
        parts = [self._part(order, batch) for batch in range(self._batch, len(self))]
        batches = iter(
            DataLoader(
                self.dataset,
                sampler=parts,
                batch_size=None,
                num_workers=self.workers,
                collate_fn=_identity,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_init_worker,
                generator=torch.Generator(),  # or it would draw from the one of the network's dropout
            )
        )
        for _ in parts:
            began = time.perf_counter()
            batch = next(batches)
            if batch.broken:
                raise DataError(batch.broken)
            self.waited += time.perf_counter() - began
            self._batch += 1
            yield self._normalised(batch), self._targets(batch)

    def _part(self, order: "np.ndarray[Any, np.dtype[np.int64]]", batch: int) -> "Part":
        """The share of this process in a batch, and the size of the inputs of the whole batch."""
        whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        sizes = [self.view.resized(*size) for size in self.annotations.sizes[whole].tolist()]
        height, width = (max(side) for side in zip(*sizes, strict=True))
        if self.view.fit != "square":
            height, width = (-(-side // MULTIPLE) * MULTIPLE for side in (height, width))
        return Part(self.epoch, order[self._share(batch)].tolist(), (height, width))

    def _normalised(self, batch: "BoxBatch") -> Tensor:
        pixels = batch.pixels.to(self.device, non_blocking=True)
        normalised = torch.empty_like(pixels, dtype=torch.float32)
        torch.div(pixels, 255, out=normalised).sub_(self._mean).div_(self._std)
        for image, (height, width) in zip(normalised, batch.sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return normalised

    def _targets(self, batch: "BoxBatch") -> list[Target]:
        columns = zip(batch.indices, batch.sizes, batch.boxes, batch.labels, strict=True)
        return [
            Target(
                index,
                size,
                boxes.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
                self._seed_of(index),
            )
            for index, size, boxes, labels in columns
        ]


class Part(NamedTuple):
    """The share of a process in one batch."""

    epoch: int
    indices: list[int]
    size: tuple[int, int]
    """Height and width of the inputs, padding included."""


class BoxBatch(NamedTuple):
    """One batch before normalisation: uint8 N x 3 x H x W, channels last, and the objects of each image."""

    indices: list[int]
    pixels: Tensor
    sizes: list[tuple[int, int]]
    boxes: list[Tensor]
    labels: list[Tensor]
    broken: str
    """The reason why the batch cannot be made; empty if it can."""


class BoxedPhotos(Dataset[BoxBatch]):
    """The data set of the worker processes, which read the photos of a part and augment them with their boxes."""

    def __init__(self, annotations: Annotations, folder: Path, view: View, seed: int, *, difficult: bool) -> None:
        self.annotations, self.folder, self.view = annotations, folder, view
        self.seed, self.difficult = seed, difficult

    def __getitem__(self, part: Part) -> BoxBatch:
        pixels = torch.zeros((len(part.indices), *part.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        batch = BoxBatch(part.indices, pixels, [], [], [], "")
        for image, index in zip(pixels, part.indices, strict=True):
            try:
                photo = self.photo(index)
            except DataError as error:
                return batch._replace(broken=str(error))
            made = sample(photo, self.view, seed=self.seed, epoch=part.epoch, index=index)
            height, width = made.pixels.shape[1:]
            image[:, :height, :width] = made.pixels
            batch.sizes.append((height, width))
            batch.boxes.append(made.boxes)
            batch.labels.append(made.labels)
        return batch

    def photo(self, index: int) -> Sample:
        """A photo as it is, with its boxes.

        Raises:
            DataError: if it cannot be decoded, or its size is not that of its annotation.
        """
        path = self.folder / str(self.annotations.names[index])
        pixels = decoded(read(path), path)
        height, width = self.annotations.sizes[index].tolist()
        if pixels.shape[1:] != (height, width):
            raise DataError(
                f"{path}: is {pixels.shape[2]} x {pixels.shape[1]}, and its annotation says {width} x {height}"
            )
        return Sample(pixels, *self.annotations.to_train_on(index, difficult=self.difficult))
