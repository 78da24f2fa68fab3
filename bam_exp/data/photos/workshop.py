"""The work of the loader's worker processes: reading photos and cropping them."""

import os
import signal
import warnings
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bam_exp.data.photos.crops import Content, Crop, central_square, decoded, header, random_crop, random_square, read
from bam_exp.data.photos.folder import Photos
from bam_exp.errors import DataError

T = TypeVar("T")


class BatchIndices(NamedTuple):
    """The photos that one rank needs for one batch."""

    epoch: int
    indices: npt.NDArray[np.int64]


class PhotoBatch(NamedTuple):
    """A batch of cropped photos, without those that cannot be decoded."""

    pixels: Tensor
    """uint8 N x 3 x size x size, channels last."""
    labels: Tensor
    """int64 N."""
    broken: list[str]
    """One line for each photo that is missing here, naming the file and the reason."""


class EncodedBatch(NamedTuple):
    """A batch of JPEG files for nvJPEG, without those whose header cannot be read."""

    content: Tensor
    """The bytes of all files, one after the other, uint8."""
    lengths: list[int]
    """Bytes of each file; 0 where the photo is in `decoded`."""
    decoded: dict[int, Tensor]
    """Photos that nvJPEG cannot decode (CMYK, PNG), already decoded, by their position in the batch."""
    crops: list[Crop]
    indices: list[int]
    broken: list[str]
    """One line for each photo that is missing here, naming the file and the reason."""


class PhotoDataset(Dataset[PhotoBatch | EncodedBatch]):
    """Maps `BatchIndices` to a `PhotoBatch` or, if `encoded`, to an `EncodedBatch`."""

    def __init__(self, photos: Photos, size: int, seed: int, *, train: bool, encoded: bool) -> None:
        self.photos, self.size, self.seed, self.train, self.encoded = photos, size, seed, train, encoded

    def __getitem__(self, batch: BatchIndices) -> PhotoBatch | EncodedBatch:
        return self._read(batch) if self.encoded else self._crop(batch)

    def _crop(self, batch: BatchIndices) -> PhotoBatch:
        pixels = torch.empty((len(batch.indices), self.size, self.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        kept: list[int] = []
        broken: list[str] = []
        for index in batch.indices.tolist():
            path = self.photos.path(index)
            try:
                content = read(path)
                if self.train:
                    photo = decoded(content, path)
                    crop = random_crop(self.seed, batch.epoch, index, *photo.shape[1:])
                    pixels[len(kept)] = random_square(photo, crop, self.size)
                else:
                    pixels[len(kept)] = central_square(content, path, self.size)
            except DataError as error:
                broken.append(str(error))
            else:
                kept.append(index)
        return PhotoBatch(pixels[: len(kept)], torch.from_numpy(self.photos.labels[kept]), broken)

    def _read(self, batch: BatchIndices) -> EncodedBatch:
        contents: list[Content] = []
        others: dict[int, Tensor] = {}
        crops: list[Crop] = []
        kept: list[int] = []
        broken: list[str] = []
        for index in batch.indices.tolist():
            path = self.photos.path(index)
            try:
                content = read(path)
                height, width, plain = header(content, path)
                if not plain:
                    others[len(kept)] = decoded(content, path)
                    content = content[:0]
            except DataError as error:
                broken.append(str(error))
            else:
                contents.append(content)
                crops.append(random_crop(self.seed, batch.epoch, index, height, width))
                kept.append(index)
        lengths = [len(content) for content in contents]
        joined = np.concatenate(contents) if contents else np.empty(0, dtype=np.uint8)
        return EncodedBatch(torch.from_numpy(joined), lengths, others, crops, kept, broken)


def _init_worker(_worker: int) -> None:
    """Initialise a worker process: ignore signals meant for the parent, and silence warnings about odd EXIF data."""
    for name in ("SIGINT", "SIGUSR2"):
        if hasattr(signal, name):  # Windows has no SIGUSR2.
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Out of the process group of the parent, to which torchrun's agent sends SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")


def _identity(batch: T) -> T:
    """Collate function for samples that are whole batches already."""
    return batch
