"""`bam-bench input`: batches of CIFAR's size and of photos, from the typical peer's loader and from ours."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional

from bam_exp.bench import boxes
from bam_exp.bench.forms import MEAN, STD, network_of
from bam_exp.bench.measure import Bench, Row, relative, say, spread
from bam_exp.bench.step import Step, Variant
from bam_exp.data import DeviceLoader, ImageNet
from bam_exp.data.photos.crops import random_crop
from bam_exp.data.photos.folder import Photos, photos_in
from bam_exp.data.photos.loader import PhotoLoader


def rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Augmented batches of CIFAR's size, of photos and of photos with boxes, from the typical peer's loader and from ours."""
    bench.measure_ceilings()
    with tempfile.TemporaryDirectory() as folder:
        photos = _given(Path(options.photos)) if options.photos else _drawn(Path(folder))
        found = [
            *_cifar(bench, options.batch or 128),
            *_photos(bench, photos, options.batch or 64),
            *boxes.rows(bench, photos),
        ]
        return found + (_steps(bench, photos, options.batch or 256) if bench.cuda else [])


class Each(Dataset[tuple[Tensor, int]]):
    """A data set that makes a sample at a time by `make(index)`, as torchvision's data sets do."""

    def __init__(self, count: int, make: Callable[[int], tuple[Tensor, int]]) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.make(index)


def _compare(bench: Bench, of: str, batch: int, loaders: dict[str, tuple[Any, int]]) -> list[Row]:
    """Time a pass of each over a number of images. Ratios are those to the first, in pairs within a round."""

    def run_through(loader: Any, count: int) -> None:
        for images, labels in islice(loader, -(-count // batch)):
            images.to(bench.device, non_blocking=True), labels.to(bench.device, non_blocking=True)

    say(of)
    times = bench.interleave({name: partial(run_through, *one) for name, one in loaders.items()}, warm_up=1)
    found: list[Row] = []
    first: list[float] = []
    for name, (_, count) in loaders.items():
        each = [1e6 * one / count for one in (times[name].wall if "(wall)" in name else times[name].seconds)]
        first = first or each
        row: Row = {"of": of, "variant": name, **spread("us an image", each), "images/s": 1e6 / median(each)}
        found.append({**row, **spread("x PIL", [one / other for one, other in zip(first, each, strict=True)])})
    return found


# CIFAR


def peer_loader(images: Tensor, labels: Tensor, *, batch: int, workers: int, train: bool = True) -> Any:
    """The typical peer's loader, our own re-implementation: torchvision's transforms on PIL images."""
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
    transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    make = partial(_sample, images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist(), transform)
    return DataLoader(
        Each(len(labels), make),
        batch_size=batch,
        shuffle=train,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def _sample(images: npt.NDArray[np.uint8], labels: list[int], transform: Any, index: int) -> tuple[Tensor, int]:
    return transform(Image.fromarray(images[index])), labels[index]


def _cifar(bench: Bench, batch: int) -> list[Row]:
    many, few = 20_480, 1_280
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (many, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(100, (many,), generator=generator)
    ours = partial(DeviceLoader, batch_size=batch, mean=MEAN, std=STD, seed=0, device=bench.device)
    theirs = partial(peer_loader, batch=batch)
    plain, exact = (
        next(iter(loader(images[:batch], labels[:batch])))[0].cpu().double()
        for loader in (ours, partial(theirs, workers=0, train=False))
    )
    loaders = {
        "PIL, in the process": (theirs(images[:few], labels[:few], workers=0), few),
        f"PIL, {bench.cores} workers (wall)": (theirs(images[:few], labels[:few], workers=bench.cores), few),
        "ours": (ours(images, labels, pad=4, flip=True, shuffle=True), many),
    }
    found = _compare(bench, f"CIFAR, batches of {batch}", batch, loaders)
    found[-1]["check"] = "ok" if relative(plain, exact) < 1e-6 else "FAILED"
    found[-1]["% of byte ceiling"] = 100 * 15 * 32 * 32 / bench.copy * found[-1]["images/s"]
    return found


# Photos


def _given(folder: Path) -> Photos:
    """The photos in a folder of class folders, or in its subfolder train/."""
    photos = photos_in(folder / "train") or photos_in(folder)
    if not photos:
        raise ValueError(f"--photos {folder}: should be a folder of class folders with photos in them")
    return photos


def _drawn(folder: Path, count: int = 128) -> Photos:
    """Drawn clouds of 500 x 375 pixels in 100 kB, about the mean of ImageNet (110 kB), so that no data set is needed."""
    say(f"drawing {count} photos")
    (folder / "photos/drawn/clouds").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        pixels = torch.zeros(1, 3, 375, 500)
        for octave in range(8):  # amplitudes fall as frequencies rise, as those of photos do
            noise = torch.randn(1, 3, (375 >> octave) + 2, (500 >> octave) + 2, generator=generator)
            pixels += 2 ** (0.5 * octave) * F.interpolate(noise, (375, 500), mode="bilinear")
        seen = (128 + 7 * pixels[0]).clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(seen.numpy()).save(folder / "photos/drawn/clouds" / f"{number}.JPEG", quality=96)
    return _given(folder / "photos/drawn")


def _reference(photos: Photos, index: int) -> tuple[Tensor, int]:
    """The training steps of torchvision's reference loader (PIL backend), with our crops instead of its random ones."""
    with photos.path(index).open("rb") as file:
        photo = Image.open(file).convert("RGB")
    crop = random_crop(0, 0, index, photo.height, photo.width)
    photo = functional.resized_crop(photo, *crop[:4], [224, 224], antialias=True)
    photo = functional.hflip(photo) if crop.mirrored else photo
    pixels = functional.convert_image_dtype(functional.pil_to_tensor(photo), torch.float)
    return functional.normalize(pixels, ImageNet.mean, ImageNet.std), int(photos.labels[index])


def _loader(photos: Photos, batch: int, device: torch.device | str, **options: Any) -> PhotoLoader:
    keys: dict[str, Any] = {"size": 224, "train": True, "broken": "refuse", "mean": ImageNet.mean, "std": ImageNet.std}
    return PhotoLoader(photos, batch_size=batch, seed=0, device=device, **keys, **options)


def _what(photos: Photos) -> str:
    folder = "/".join(photos.folder.parts[-2:])
    return f"{len(photos)} photos ({folder}, {photos.sizes.mean() / 1e3:.0f} kB each)"


def _photos(bench: Bench, photos: Photos, batch: int) -> list[Row]:
    """Both loaders in this process with one thread, which gives the rate of a worker."""
    batch = min(batch, len(photos))
    ours = _loader(photos, batch, "cpu", workers=0, decoder="cpu")
    order = ours._order(ours._generator()).tolist()
    theirs = DataLoader(Each(len(photos), partial(_reference, photos)), batch_size=batch, sampler=order)
    (images, labels), (exact, expected) = next(iter(ours)), next(iter(theirs))
    # Both decode alike, but their resizing kernels round differently: by 2 of 255 at most.
    furthest = ((images - exact).abs().amax((0, 2, 3)) * torch.tensor(ImageNet.std) * 255).max()
    count = min(len(photos), 256) // batch * batch
    torch.set_num_threads(1)
    of = f"{_what(photos)}, crops to 224"
    loaders = {"torchvision's reference, PIL": (theirs, count), "ours": (ours, count)}
    found = _compare(bench, of, batch, loaders)
    torch.set_num_threads(bench.threads)
    found[-1]["check"] = "ok" if furthest < 3 and torch.equal(labels, expected) else "FAILED"
    return found


def _steps(bench: Bench, photos: Photos, batch: int) -> list[Row]:
    """Training steps of ImageNet's ResNet-50 on a GPU, on one batch that stays on the device and fed with photos."""
    steps, skipped = 40, 10
    times = -(-batch * (steps + skipped) // len(photos))  # the same files are repeated, so that no epoch ends
    names, labels, sizes = (
        np.tile(photos.names, times),
        np.tile(photos.labels % 100, times),
        np.tile(photos.sizes, times),
    )
    loader = _loader(Photos(photos.folder, photos.classes, names, labels, sizes), batch, bench.device)
    there = next(iter(loader))
    network = network_of("resnet50_imagenet", "none").to(bench.device)
    step = Step(Variant("", "none", precision="bfloat16", compile="on"), network, *there)

    def rate(batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        started = 0.0
        for number, (step.images, step.labels) in zip(range(steps + skipped), batches, strict=False):
            if number == skipped:
                torch.cuda.synchronize()
                started = time.perf_counter()
            step()
        torch.cuda.synchronize()
        return steps * batch / (time.perf_counter() - started)

    of = f"steps of ResNet-50 at 224, batch {batch}, {_what(photos)}"
    say(of)
    decoder = "nvJPEG" if loader.nvjpeg else "decoded on the CPU"
    rates: dict[str, list[float]] = {"one batch, on the device": [], f"photos, {decoder}, {loader.workers} workers": []}
    for _ in range(3):
        for found, batches in zip(rates.values(), (cycle([there]), iter(loader)), strict=True):
            found.append(rate(batches))
    base, _ = map(median, rates.values())
    return [
        {"of": of, "variant": name, **spread("images/s", found), "% of the first": 100 * median(found) / base}
        for name, found in rates.items()
    ]
