"""Batches from photos on disk: read, decoded and cropped by worker processes, or by the GPU's own JPEG decoder."""

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bam_exp.cpu import cores_per_process
from bam_exp.data.batches import Batches
from bam_exp.data.photos.folder import Photos
from bam_exp.data.photos.nvjpeg import decode_batch, nvjpeg_works
from bam_exp.data.photos.workshop import BatchIndices, EncodedBatch, PhotoBatch, PhotoDataset, _identity, _init_worker
from bam_exp.errors import DataError


class PhotoLoader(Batches):
    """The batches of a split of photos, normalised: shuffled random crops and flips, or one central crop each in order.

    Order, crops and flips are a function of (seed, epoch, index): the batches are the same with any number of workers and
    ranks. Photos are decoded as PIL decodes them. Training pixels equal torchvision's RandomResizedCrop of a tensor to the
    bit, evaluation pixels torchvision's transform of a PIL image. nvJPEG, which is used for training only, and its batched
    crops differ from these in the last bits of a pixel.

    Args:
        photos: the photos of the split.
        size: height and width of the crops.
        train: random crops in random order; otherwise central crops in order.
        broken: for a photo that cannot be decoded, "refuse" ends the epoch with a DataError that names it, and "skip"
            leaves it out of its batch and records it in `skipped`.
        mean, std: per channel, for pixels from 0 to 1.
        workers: number of worker processes, none of which outlives an iteration; 0 does the work in this process; None
            chooses by `default_workers`.
        decoder: for training; "auto" uses nvJPEG where the device has it.

    Other arguments as in `Batches`. Raises ValueError as `Batches` does, and DataError while iterating.
    """

    def __init__(
        self,
        photos: Photos,
        *,
        size: int,
        train: bool,
        broken: Literal["refuse", "skip"],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
        decoder: Literal["auto", "cpu", "nvjpeg"] = "auto",
    ) -> None:
        super().__init__(len(photos), batch_size=batch_size, seed=seed, shuffle=train, rank=rank, world_size=world_size)
        self.photos, self.size, self.train, self.broken = photos, size, train, broken
        self.complete = broken != "skip"
        self.device = torch.device(device)
        self.workers = default_workers(self.device, world_size) if workers is None else workers
        self.nvjpeg = train and (decoder == "nvjpeg" or (decoder == "auto" and nvjpeg_works(self.device)))
        self.skipped: dict[str, None] = {}
        # Repeated to the length of a flattened photo: on a CPU, broadcasting over an innermost dimension of 3 does not
        # vectorise.
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).repeat(size * size).to(self.device) for values in (mean, std)
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The body of a generator runs at the first batch, as it must: Lightning calls iter() before it announces the epoch.
        self._batch, self._first_batch = self._first_batch, 0
        order = self._order(self._generator()).numpy()
        requests = [BatchIndices(self.epoch, order[self._share(batch)]) for batch in range(self._batch, len(self))]
        batches = self._from_gpu(requests) if self.nvjpeg else self._from_workers(requests)
        for request in requests:
            began = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - began
            self._report_broken(batch, len(request.indices))
            self._batch += 1
            yield self._normalised(batch.pixels), batch.labels.to(self.device, non_blocking=True)

    def _report_broken(self, batch: PhotoBatch, requested: int) -> None:
        """Refuse broken photos, or report each of them once on stderr."""
        for line in batch.broken:
            if self.broken == "refuse":
                raise DataError(f"{line}; replace it, or set data.broken=skip to leave such photos out")
            if line not in self.skipped:
                self.skipped[line] = None
                print(f"skipped ({len(self.skipped)} so far): {line}", file=sys.stderr, flush=True)
        least = 2 if self.train else 1  # Batch normalisation cannot train on a single sample.
        if batch.broken and len(batch.labels) < min(least, requested):
            raise DataError(f"{batch.broken[0]}: with it, too few photos of a batch of {requested} can be decoded")

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Convert uint8 N x 3 x size x size, channels last, to normalised float32 on the device."""
        flat = pixels.permute(0, 2, 3, 1).flatten(1).to(self.device, non_blocking=True)
        normalised = torch.empty(flat.shape, dtype=torch.float32, device=self.device)
        # On a CPU, one photo at a time stays in the cache between the operations.
        for some, out in zip(flat[:, None], normalised[:, None], strict=True) if flat.is_cpu else [(flat, normalised)]:
            torch.div(some, 255, out=out).sub_(self._mean).div_(self._std)  # the order in which torchvision rounds
        return normalised.view(len(flat), self.size, self.size, 3).permute(0, 3, 1, 2)

    def _from_workers(self, requests: list[BatchIndices], *, encoded: bool = False) -> Iterator[Any]:
        """Yield a `PhotoBatch` for each request or, if `encoded`, an `EncodedBatch`."""
        return iter(
            DataLoader(
                PhotoDataset(self.photos, self.size, self.seed, train=self.train, encoded=encoded),
                sampler=requests,
                batch_size=None,
                num_workers=self.workers,
                collate_fn=_identity,
                pin_memory=self.device.type == "cuda" and not encoded,
                worker_init_fn=_init_worker,
                generator=torch.Generator(),  # The default generator is the network's, for dropout.
            )
        )

    def _from_gpu(self, requests: list[BatchIndices]) -> Iterator[PhotoBatch]:
        """Yield a `PhotoBatch` on the GPU for each request; a thread prepares the next while one is used."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        encoded = self._from_workers(requests, encoded=True)
        with ThreadPoolExecutor(1) as ahead:
            pending = [ahead.submit(self._decode_on_gpu, encoded, stream)]
            for following in range(1, len(requests) + 1):
                if following < len(requests):
                    pending.append(ahead.submit(self._decode_on_gpu, encoded, stream))
                batch = pending.pop(0).result()
                # The memory belongs to the other stream, which would reuse it as soon as nothing here refers to it.
                batch.pixels.record_stream(torch.cuda.current_stream(self.device))
                yield batch

    def _decode_on_gpu(self, encoded: Iterator[EncodedBatch], stream: torch.cuda.Stream) -> PhotoBatch:
        batch = next(encoded)
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            # nvJPEG writes on a stream of its own and does not wait for the stream that allocates its memory
            # (pytorch/vision#9606), so that stream must be idle before and after.
            stream.synchronize()
            decoded = decode_batch(batch, self.photos, self.size, self.device)
            stream.synchronize()
        return decoded


def default_workers(device: torch.device, world_size: int = 1) -> int:
    """Number of worker processes for one rank: its share of the CPU cores on a GPU, an eighth of that on a CPU.

    On a CPU the network itself needs the cores for about a hundred times as long as the photos do.
    """
    cores = cores_per_process(world_size)
    return cores if device.type == "cuda" else cores // 8
