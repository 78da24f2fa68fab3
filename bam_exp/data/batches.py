"""The contract of a loader: which samples make up a batch, and where an interrupted epoch continues."""

import hashlib
import math
from collections.abc import Iterator
from typing import Generic, Self

import torch
from torch import Tensor
from typing_extensions import TypeVar

Targets = TypeVar("Targets", default=Tensor)


def sizes_of_shares(count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> set[int]:
    """The sizes that a rank's share of a batch of an epoch of `count` samples can have: that of most batches and of the last."""
    sizes = {min(batch_size, count), count % batch_size or batch_size}
    return {size * (rank + 1) // world_size - size * rank // world_size for size in sizes}


class Batches(Generic[Targets]):
    """The batches of an epoch, as a function of (seed, epoch) and of the rank.

    `batch_size` is the global batch size: rank `rank` of `world_size` takes its consecutive share of every batch, so that
    the shares in order are the batch of a single process. The last batch may be smaller; no sample is dropped.

    Iterating yields images, float32 N x 3 x H x W with channels last, and their targets, both on the device. `Targets` is
    the type of the targets: by default a tensor of labels, int64 N.

    `state_dict` holds the epoch and the number of batches handed out. After `load_state_dict` the next iteration of that
    epoch continues there; an iteration of any other epoch starts at the first batch.

    Raises ValueError if a rank would have no sample of some batch.
    """

    waited = 0.0
    """Total seconds in which iterations have waited for samples."""

    complete = True
    """Whether every batch has all of its samples, so that `samples_in` is true of it."""

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
        """Number of batches in an epoch."""
        return math.ceil(self.count / self.batch_size)

    def samples_in(self, batch: int) -> int:
        """Number of samples of a batch of an epoch, over all ranks."""
        return min(self.batch_size, self.count - batch * self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Targets]]:
        raise NotImplementedError

    @property
    def sampler(self) -> Self:
        """The object whose `set_epoch` Lightning calls at the start of an epoch; Lightning has no other way to announce it."""
        return self

    batch_sampler = None  # Lightning also looks here for a `set_epoch`.

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if epoch != self.epoch:
            self.epoch, self._batch, self._first_batch = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches handed out so far."""
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the position that `state_dict` recorded."""
        self.epoch = state["epoch"]
        self._batch = self._first_batch = state["batch"]

    def _generator(self) -> torch.Generator:
        """Return a random generator that depends on the seed and the epoch only."""
        digest = hashlib.sha256(f"seed {self.seed}, epoch {self.epoch}".encode()).digest()
        return torch.Generator().manual_seed(
            int.from_bytes(digest[:4], "big")
        )  # PyTorch's mt19937 uses 32 bits of a seed

    def _seed_of(self, index: int) -> int:
        """Return the seed of what training draws for an image, a function of (seed, epoch, index)."""
        digest = hashlib.sha256(f"seed {self.seed}, epoch {self.epoch}, draws for image {index}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return the indices of the samples in the order of this epoch's batches, int64."""
        return torch.randperm(self.count, generator=generator) if self.shuffle else torch.arange(self.count)

    def _share(self, batch: int) -> slice:
        """Return this rank's part of a batch as a slice of the epoch's order; the parts differ in size by at most one."""
        first, size = batch * self.batch_size, self.samples_in(batch)
        return slice(first + size * self.rank // self.world_size, first + size * (self.rank + 1) // self.world_size)
