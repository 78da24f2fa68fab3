"""Data sets that fit into the memory of the device."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bam_exp.data.batches import Batches
from bam_exp.data.dataset import Split


class DeviceLoader(Batches):
    """Batches from images that are held on the device as uint8; a batch is one gather of windows and one normalisation.

    The raw pixels are padded with zeros. With `pad` > 0 each sample is cropped at an offset uniform in 0 ... 2 * pad in y
    and x, and with `flip` it is mirrored with probability 0.5. At equal offsets the result equals torchvision's
    `RandomCrop(size, padding=pad)`, `RandomHorizontalFlip`, `ToDtype(scale=True)` and `Normalize(mean, std)` to the bit.
    Order, crops and flips are a function of (seed, epoch, index).

    The device holds every padded image and, with `flip`, its mirror image: 480 MB for CIFAR's training set. The random
    numbers of an epoch are drawn on the CPU, so that they are the same for any device, and move to the device once, so that
    no step waits for them. An interrupted epoch continues bitwise.

    Args:
        images: uint8 N x 3 x H x W.
        labels: int64 N.
        mean, std: per channel, for pixels from 0 to 1.

    Other arguments as in `Batches`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        device: torch.device | str,
        pad: int = 0,
        flip: bool = False,
        shuffle: bool = False,
        memory_format: torch.memory_format = torch.channels_last,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        count, channels, self._height, self._width = images.shape
        super().__init__(count, batch_size=batch_size, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)
        self.pad, self.flip = pad, flip
        self.device, self.memory_format = torch.device(device), memory_format

        height, width = self._height + 2 * pad, self._width + 2 * pad
        store = images.new_zeros((1 + flip, count, height, width, channels), device=self.device)
        store[0, :, pad : pad + self._height, pad : pad + self._width] = images.permute(0, 2, 3, 1).to(self.device)
        if flip:
            store[1] = store[0].flip(2)
        self._pitch, self._pixels = width, height * width
        # A view of every H x W window of the store, by its first pixel, in which a crop is an index into dimension 0.
        windows = store[..., 0].numel() - (self._height - 1) * width - self._width + 1
        self._windows = store.view(-1).as_strided(
            (windows, self._height, self._width * channels), (channels, width * channels, 1)
        )
        self._labels = labels.to(self.device)
        # Repeated to the length of a flattened window: broadcasting over an innermost dimension of 3 does not vectorise.
        repeats = self._height * self._width
        self._mean = torch.tensor(mean, dtype=torch.float32).repeat(repeats).to(self.device)
        self._std = torch.tensor(std, dtype=torch.float32).repeat(repeats).to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The body of a generator runs at the first batch, as it must: Lightning calls iter() before it announces the epoch.
        self._batch, self._first_batch = self._first_batch, 0
        began = time.perf_counter()
        order, windows = self._draw()
        labels = self._labels[order]
        for batch in range(self._batch, len(self)):
            share = self._share(batch)
            images = self._images(windows[share])
            self._batch = batch + 1
            self.waited += time.perf_counter() - began
            yield images, labels[share]
            began = time.perf_counter()

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return the epoch's order and, in that order, the first pixel of each sample's window; both int64 on the device."""
        generator = self._generator()
        y, x = torch.randint(2 * self.pad + 1, (2, self.count), generator=generator)
        mirrored = torch.randint(1 + self.flip, (self.count,), generator=generator)
        first = (mirrored * self.count + torch.arange(self.count)) * self._pixels + y * self._pitch + x
        order = self._order(generator)
        order, windows = torch.stack([order, first[order]]).to(self.device)
        return order, windows

    def _images(self, windows: Tensor) -> Tensor:
        pixels = self._windows.index_select(0, windows)
        flat = pixels.view(len(windows), -1).to(torch.float32)
        flat.mul_(1 / 255).sub_(self._mean).div_(self._std)  # the order in which torchvision rounds
        return (
            flat.view(len(windows), self._height, self._width, -1)
            .permute(0, 3, 1, 2)
            .contiguous(memory_format=self.memory_format)
        )


class OnDevice:
    """Base class of data sets that fit on the device: serves what `load` reads through a `DeviceLoader`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool

    def load(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return the images, uint8 N x 3 x H x W, and the labels, int64 N."""
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
    ) -> DeviceLoader:
        """Return the batches of a split: training images shuffled and augmented by `pad` and `flip`, test images unchanged."""
        images, labels = self.load(split)
        train = split == "train"
        return DeviceLoader(
            images,
            labels,
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            seed=seed,
            device=device,
            pad=self.pad if train else 0,
            flip=self.flip and train,
            shuffle=train,
            rank=rank,
            world_size=world_size,
        )
