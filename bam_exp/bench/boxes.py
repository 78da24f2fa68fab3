"""The part of `bam-bench input` about photos with boxes: SSD's augmentation as torchvision's transforms make it and as we do."""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from bam_exp.bench.measure import Bench, Row, say, spread
from bam_exp.data.boxes import FILL, Sample, View, augmented
from bam_exp.data.photos.crops import decoded, read
from bam_exp.data.photos.folder import Photos

SIZE = 300
VIEW = View(SIZE, augment="ssd")


def rows(bench: Bench, photos: Photos, count: int = 64) -> list[Row]:
    """From decoded photos with three boxes each to inputs of SSD, on the same draws; the pixels must be equal."""
    of = f"{min(count, len(photos))} decoded photos with boxes, SSD's augmentation to {SIZE}"
    say(of)
    samples = [_with_boxes(photos, i) for i in range(min(count, len(photos)))]
    fill = {tv_tensors.Image: FILL, "others": 0}
    reference = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=fill),
            v2.RandomIoUCrop(),
            v2.SanitizeBoundingBoxes(),
            v2.Resize((SIZE, SIZE)),
            v2.RandomHorizontalFlip(),
        ]
    )
    makers: dict[str, Callable[[Sample], Tensor]] = {
        "torchvision's reference, v2": partial(_theirs, reference),
        "ours": lambda one: augmented(one, VIEW).pixels,
    }

    def run_through(name: str) -> list[Tensor]:
        torch.manual_seed(0)
        return [makers[name](one) for one in samples]

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        theirs, ours = (run_through(name) for name in makers)
        times = bench.interleave({name: partial(run_through, name) for name in makers}, warm_up=1)
    torch.set_num_threads(bench.threads)
    equal = all(torch.equal(one, other) for one, other in zip(theirs, ours, strict=True))
    found: list[Row] = []
    first: list[float] = []
    for name in makers:
        each = [1e6 * seconds / len(samples) for seconds in times[name].seconds]
        first = first or each
        row: Row = {"of": of, "variant": name, **spread("us an image", each), "images/s": 1e6 / median(each)}
        found.append({**row, **spread("x PIL", [one / other for one, other in zip(first, each, strict=True)])})
    found[-1]["check"] = "ok" if equal else "FAILED"
    return found


def _with_boxes(photos: Photos, index: int) -> Sample:
    pixels = decoded(read(photos.path(index)), photos.path(index))
    sides = torch.tensor([pixels.shape[2], pixels.shape[1]]).repeat(2)
    generator = torch.Generator().manual_seed(index)
    corners = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    corners[:, 2:] += 0.01
    return Sample(pixels, (corners * sides).clamp(max=sides), torch.tensor([1, 2, 3]))


def _theirs(reference: v2.Compose, one: Sample) -> Tensor:
    boxes = tv_tensors.BoundingBoxes(one.boxes, format="XYXY", canvas_size=one.pixels.shape[1:])
    made = reference({"image": tv_tensors.Image(one.pixels), "boxes": boxes, "labels": one.labels})
    image: Tensor = made["image"]
    return image
