"""Batches from images that live on the device: order, crops and flips are a function of (seed, epoch, index)."""

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class DeviceLoader:
    """All images of a split as uint8 on the device; a batch is one gather of windows and one normalisation.

    The raw pixels are padded with zeros; where `pad` > 0 each sample is cropped at an offset uniform in 0 ... 2 * pad
    in y and x, and with `flip` mirrored with probability 0.5: torchvision's `RandomCrop(size, padding=pad)`,
    `RandomHorizontalFlip`, `ToDtype(scale=True)` and `Normalize(mean, std)`, to the bit at equal offsets. The store
    holds every padded image, and its mirror image where `flip`: 480 MB for CIFAR's train set.

    An epoch's draws are made on the CPU, so they are the same on any device, and move to the device once: no step waits
    for it. `batch_size` counts all processes: process `rank` of `world_size` takes its consecutive share of every
    batch, so that the shares in order are the batches of a single process. The last batch may be smaller; none is
    dropped.

    Iterating yields float32 N x 3 x H x W in `memory_format` and int64 N. `state_dict` counts the batches handed out;
    after `load_state_dict` the next iteration of that epoch continues there, bitwise. Any other begins at the first.

    images: uint8 N x 3 x H x W. labels: int64 N. mean, std: per channel, of pixels in 0 ... 1.
    Raises ValueError where a process would have no sample of a batch.
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
        smallest = min(batch_size, count % batch_size or batch_size)
        if smallest < world_size:
            raise ValueError(
                f"batch_size={batch_size}: a batch of {smallest} of the {count} images cannot be shared by "
                f"{world_size} processes; choose another batch size or fewer processes"
            )
        self.batch_size, self.seed, self.pad, self.flip, self.shuffle = batch_size, seed, pad, flip, shuffle
        self.device, self.memory_format = torch.device(device), memory_format
        self.rank, self.world_size = rank, world_size
        self.epoch = self._batch = self._first_batch = 0
        self._count = count

        height, width = self._height + 2 * pad, self._width + 2 * pad
        store = images.new_zeros((1 + flip, count, height, width, channels), device=self.device)
        store[0, :, pad : pad + self._height, pad : pad + self._width] = images.permute(0, 2, 3, 1).to(self.device)
        if flip:
            store[1] = store[0].flip(2)
        self._pitch, self._pixels = width, height * width
        # Every H x W window of the store, by its first pixel: a crop is then an index into dimension 0.
        windows = store[..., 0].numel() - (self._height - 1) * width - self._width + 1
        self._windows = store.view(-1).as_strided(
            (windows, self._height, self._width * channels), (channels, width * channels, 1)
        )
        self._labels = labels.to(self.device)
        # As long as a flattened window: a broadcast over an innermost dimension of 3 would not vectorise.
        repeats = self._height * self._width
        self._mean = torch.tensor(mean, dtype=torch.float32).repeat(repeats).to(self.device)
        self._std = torch.tensor(std, dtype=torch.float32).repeat(repeats).to(self.device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self._count / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch != self.epoch:
            self.epoch, self._batch, self._first_batch = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]
        self._batch = self._first_batch = state["batch"]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, whose body waits for the first batch: Lightning calls iter() before it announces the epoch.
        self._batch, self._first_batch = self._first_batch, 0
        order, windows = self._draw()
        labels = self._labels[order]
        for batch in range(self._batch, len(self)):
            share = self._share(batch)
            self._batch = batch + 1
            yield self._images(windows[share]), labels[share]

    def _draw(self) -> tuple[Tensor, Tensor]:
        """The epoch's order and the first pixel of each sample's window in that order, both int64 on the device."""
        digest = hashlib.sha256(f"seed {self.seed}, epoch {self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))  # mt19937 uses 32 bits
        y, x = torch.randint(2 * self.pad + 1, (2, self._count), generator=generator)
        mirrored = torch.randint(1 + self.flip, (self._count,), generator=generator)
        first = (mirrored * self._count + torch.arange(self._count)) * self._pixels + y * self._pitch + x
        order = torch.randperm(self._count, generator=generator) if self.shuffle else torch.arange(self._count)
        order, windows = torch.stack([order, first[order]]).to(self.device)
        return order, windows

    def _share(self, batch: int) -> slice:
        """Where this process's samples of a batch stand in the epoch's order; sizes differ by one at most."""
        first = batch * self.batch_size
        size = min(self.batch_size, self._count - first)
        return slice(first + size * self.rank // self.world_size, first + size * (self.rank + 1) // self.world_size)

    def _images(self, windows: Tensor) -> Tensor:
        pixels = self._windows.index_select(0, windows)
        flat = pixels.view(len(windows), -1).to(torch.float32)
        flat.mul_(1 / 255).sub_(self._mean).div_(self._std)  # the order in which torchvision rounds
        return (
            flat.view(len(windows), self._height, self._width, -1)
            .permute(0, 3, 1, 2)
            .contiguous(memory_format=self.memory_format)
        )
