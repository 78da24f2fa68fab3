"""What every loader shares: which samples make up a batch, and where an interrupted epoch goes on."""

import hashlib
import math
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor


class Batches:
    """The batches of an epoch, as a function of (seed, epoch) and the share of a process.

    `batch_size` counts all processes: process `rank` of `world_size` takes its consecutive share of every batch, so
    that the shares in order are the batches of a single process. The last batch may be smaller; none is dropped.
    `state_dict` counts the batches handed out; after `load_state_dict` the next iteration of that epoch continues
    there. Any other begins at the first. `waited` counts the seconds in which iterations had no batch ready so far.

    Iterating yields float32 N x 3 x H x W, channels last, and int64 N, on the device.
    Raises ValueError where a process would have no sample of a batch.
    """

    waited = 0.0
    """Seconds that iterations have waited for samples so far; 0 where nothing has to be waited for."""

    def __init__(
        self, count: int, *, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        smallest = min(batch_size, count % batch_size or batch_size)
        if smallest < world_size:
            raise ValueError(
                f"batch_size={batch_size}: a batch of {smallest} of the {count} images cannot be shared by "
                f"{world_size} processes; choose another batch size or fewer processes"
            )
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = self._batch = self._first_batch = 0
        self.waited = 0.0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    @property
    def sampler(self) -> Self:
        """What Lightning announces an epoch to, by `set_epoch`; it knows no other way."""
        return self

    batch_sampler = None  # Lightning looks here too

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch != self.epoch:
            self.epoch, self._batch, self._first_batch = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]
        self._batch = self._first_batch = state["batch"]

    def _generator(self) -> torch.Generator:
        """Random numbers of this epoch."""
        digest = hashlib.sha256(f"seed {self.seed}, epoch {self.epoch}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))  # mt19937 uses 32 bits

    def _order(self, generator: torch.Generator) -> Tensor:
        """The samples of this epoch in the order of the batches, int64."""
        return torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)

    def _share(self, batch: int) -> slice:
        """Where this process's samples of a batch stand in the epoch's order; sizes differ by one at most."""
        first = batch * self.batch_size
        size = min(self.batch_size, self.count - first)
        return slice(first + size * self.rank // self.world_size, first + size * (self.rank + 1) // self.world_size)
