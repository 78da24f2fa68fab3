"""Batches from photos on disk: read, decoded and cropped by worker processes, or by the GPU's own JPEG decoder."""

import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bam_exp.data.batches import Batches
from bam_exp.data.photos.crops import (
    Content,
    Crop,
    central_square,
    decoded,
    header,
    random_crop,
    random_square,
    random_squares,
    read,
)
from bam_exp.data.photos.folder import Photos
from bam_exp.errors import DataError


class PhotoLoader(Batches):
    """The batches of a split: shuffled random crops and flips, or in order one central crop each, normalised.

    Order, crops and flips are a function of (seed, epoch, index): the same batches on any number of workers and
    processes. Training pixels are torchvision's RandomResizedCrop of a tensor, evaluation's torchvision's transform of
    a PIL image, to the bit; both are decoded as PIL decodes. nvJPEG, which only trains, and its batched crops differ
    from that in the last bits of a pixel.

    broken: what becomes of a photo that cannot be decoded: "refuse" ends the epoch with a DataError that names it,
    "skip" leaves it out of its batch; `skipped` has them all. workers: processes, none of which outlives an iteration;
    0 does the work in this one; None chooses. decoder: of training; "auto" takes nvJPEG where the device has it.

    Raises ValueError as `Batches`, and DataError while iterating.
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
        self.device = torch.device(device)
        self.workers = default_workers(self.device, world_size) if workers is None else workers
        self.nvjpeg = train and (decoder == "nvjpeg" or (decoder == "auto" and _nvjpeg_works(self.device)))
        self.skipped: dict[str, None] = {}
        # As long as a flattened photo: on a CPU, a broadcast over an innermost dimension of 3 would not vectorise.
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).repeat(size * size).to(self.device) for values in (mean, std)
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator, whose body waits for the first batch: Lightning calls iter() before it announces the epoch.
        self._batch, self._first_batch = self._first_batch, 0
        order = self._order(self._generator()).numpy()
        parts = [Part(self.epoch, order[self._share(batch)]) for batch in range(self._batch, len(self))]
        batches = self._from_gpu(parts) if self.nvjpeg else self._from_workers(parts)
        for part in parts:
            began = time.perf_counter()
            made = next(batches)
            self.waited += time.perf_counter() - began
            self._note(made, len(part.indices))
            self._batch += 1
            yield self._normalised(made.pixels), made.labels.to(self.device, non_blocking=True)

    def _note(self, made: "Made", wanted: int) -> None:
        """Refuse broken photos, or say once of each that it is skipped."""
        for line in made.broken:
            if self.broken == "refuse":
                raise DataError(f"{line}; replace it, or data.broken=skip leaves such photos out")
            if line not in self.skipped:
                self.skipped[line] = None
                print(f"skipped ({len(self.skipped)} so far): {line}", file=sys.stderr, flush=True)
        least = 2 if self.train else 1  # batch normalisation cannot train on one
        if made.broken and len(made.labels) < min(least, wanted):
            raise DataError(f"{made.broken[0]}: with it, too few photos of a batch of {wanted} can be decoded")

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 N x 3 x size x size, channels last, to float32 on the device."""
        flat = pixels.permute(0, 2, 3, 1).flatten(1).to(self.device, non_blocking=True)
        normalised = torch.empty(flat.shape, dtype=torch.float32, device=self.device)
        # On a CPU one photo at a time, which stays in the cache between the operations.
        for some, out in zip(flat[:, None], normalised[:, None], strict=True) if flat.is_cpu else [(flat, normalised)]:
            torch.div(some, 255, out=out).sub_(self._mean).div_(self._std)  # as torchvision's presets round
        return normalised.view(len(flat), self.size, self.size, 3).permute(0, 3, 1, 2)

    def _from_workers(self, parts: "list[Part]", *, encoded: bool = False) -> "Iterator[Any]":
        """A `Made` of each part, or an `Encoded`."""
        return iter(
            DataLoader(
                Workshop(self.photos, self.size, self.seed, train=self.train, encoded=encoded),
                sampler=parts,
                batch_size=None,
                num_workers=self.workers,
                collate_fn=_as_it_is,
                pin_memory=self.device.type == "cuda" and not encoded,
                worker_init_fn=_settle,
                generator=torch.Generator(),  # or it would draw from the one of the network's dropout
            )
        )

    def _from_gpu(self, parts: "list[Part]") -> "Iterator[Made]":
        """A `Made` of each part, its pixels on the GPU, where a thread makes the next while this one is used."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        encoded = self._from_workers(parts, encoded=True)
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._decoded_on_gpu, encoded, stream)]
            for following in range(1, len(parts) + 1):
                if following < len(parts):
                    coming.append(ahead.submit(self._decoded_on_gpu, encoded, stream))
                made = coming.pop(0).result()
                # Its memory belongs to the other stream, which would use it again once nobody here refers to it.
                made.pixels.record_stream(torch.cuda.current_stream(self.device))
                yield made

    def _decoded_on_gpu(self, encoded: "Iterator[Encoded]", stream: torch.cuda.Stream) -> "Made":
        batch = next(encoded)
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            # nvJPEG writes on a stream of its own without waiting for the one that its memory comes from
            # (pytorch/vision#9606): nothing may be left to do on that one, before and after.
            stream.synchronize()
            made = _made(batch, self.photos, self.size, self.device)
            stream.synchronize()
        return made


class Part(NamedTuple):
    """What a process has to make of one batch."""

    epoch: int
    indices: npt.NDArray[np.int64]


class Made(NamedTuple):
    """One batch of squares, uint8 N x 3 x size x size, channels last; photos that could not be decoded are left out."""

    pixels: Tensor
    labels: Tensor
    broken: list[str]


class Encoded(NamedTuple):
    """One batch of files for nvJPEG, one behind another, and where to crop them."""

    content: Tensor
    lengths: list[int]
    decoded: dict[int, Tensor]
    """Photos, by their place in the batch, that are none for nvJPEG (CMYK, PNG)."""
    crops: list[Crop]
    indices: list[int]
    broken: list[str]


class Workshop(Dataset[Made | Encoded]):
    """What worker processes do: a part of a batch, read and cropped, or only read for nvJPEG."""

    def __init__(self, photos: Photos, size: int, seed: int, *, train: bool, encoded: bool) -> None:
        self.photos, self.size, self.seed, self.train, self.encoded = photos, size, seed, train, encoded

    def __getitem__(self, part: Part) -> Made | Encoded:
        return self._read(part) if self.encoded else self._make(part)

    def _make(self, part: Part) -> Made:
        pixels = torch.empty((len(part.indices), self.size, self.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        kept: list[int] = []
        broken: list[str] = []
        for index in part.indices.tolist():
            path = self.photos.path(index)
            try:
                content = read(path)
                if self.train:
                    photo = decoded(content, path)
                    crop = random_crop(self.seed, part.epoch, index, *photo.shape[1:])
                    pixels[len(kept)] = random_square(photo, crop, self.size)
                else:
                    pixels[len(kept)] = central_square(content, path, self.size)
            except DataError as error:
                broken.append(str(error))
            else:
                kept.append(index)
        return Made(pixels[: len(kept)], torch.from_numpy(self.photos.labels[kept]), broken)

    def _read(self, part: Part) -> Encoded:
        contents: list[Content] = []
        alone: dict[int, Tensor] = {}
        crops: list[Crop] = []
        kept: list[int] = []
        broken: list[str] = []
        for index in part.indices.tolist():
            path = self.photos.path(index)
            try:
                content = read(path)
                height, width, plain = header(content, path)
                if not plain:
                    alone[len(kept)] = decoded(content, path)
                    content = content[:0]
            except DataError as error:
                broken.append(str(error))
            else:
                contents.append(content)
                crops.append(random_crop(self.seed, part.epoch, index, height, width))
                kept.append(index)
        lengths = [len(content) for content in contents]
        joined = np.concatenate(contents) if contents else np.empty(0, dtype=np.uint8)
        return Encoded(torch.from_numpy(joined), lengths, alone, crops, kept, broken)


def _made(batch: Encoded, photos: Photos, size: int, device: torch.device) -> Made:
    """Decode and crop on the device, by nvJPEG if it is a GPU; a file it refuses is decoded on the CPU."""
    from torchvision.io import ImageReadMode, decode_jpeg

    contents, broken = torch.split(batch.content, batch.lengths), list(batch.broken)
    found = {place: photo.to(device) for place, photo in batch.decoded.items()}
    places = [place for place in range(len(contents)) if place not in found]
    try:
        images = (
            decode_jpeg([contents[place] for place in places], mode=ImageReadMode.RGB, device=device) if places else []
        )
        found.update(zip(places, images, strict=True))
    except RuntimeError:  # it does not say which one
        for place in places:
            try:
                path = photos.path(batch.indices[place])
                found[place] = decoded(contents[place].numpy(), path).to(device)
            except DataError as error:
                broken.append(str(error))
    kept = sorted(found)
    labels = torch.from_numpy(photos.labels[[batch.indices[place] for place in kept]])
    if not kept:
        return Made(torch.empty((0, 3, size, size), dtype=torch.uint8, device=device), labels, broken)
    crops = [batch.crops[place] for place in kept]
    return Made(random_squares([found[place] for place in kept], crops, size), labels, broken)


def default_workers(device: torch.device, world_size: int = 1) -> int:
    """Worker processes for one process that trains: on a GPU its share of the cores, on a CPU an eighth of them.

    On a CPU the network needs the cores, a hundred times as long as the photos, and worker processes would only get in
    its way. The cores are those that this process may use; where SLURM gave them to this task they are not shared.
    """
    cores = len(os.sched_getaffinity(0))
    if "SLURM_CPUS_PER_TASK" not in os.environ:
        cores //= int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return max(1, cores) if device.type == "cuda" else cores // 8


def _nvjpeg_works(device: torch.device) -> bool:
    """Whether this device decodes a small JPEG."""
    if device.type != "cuda":
        return False
    from torchvision.io import decode_jpeg

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode_jpeg([torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)], device=device)
    except RuntimeError as error:
        print(f"no nvJPEG ({str(error).partition(chr(10))[0]}): photos are decoded on the CPU", file=sys.stderr)
        return False
    return True


def _settle(_worker: int) -> None:
    """A worker ends when its parent does, not by signals that are meant for that one, and does not warn of odd EXIF."""
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")


def _as_it_is(made: Any) -> Any:
    return made
