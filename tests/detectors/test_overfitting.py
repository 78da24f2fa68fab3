"""A detector that sees the same few photos again and again finds what is in them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bam_exp.attention import BAM, attach
from bam_exp.data import COCO
from bam_exp.data.box_loader import BoxedPhotos
from bam_exp.data.boxes import View, sample, to_photo
from bam_exp.data.target import Target
from bam_exp.detectors import (
    Detector,
    faster_rcnn_resnet101,
    ssd_mobilenet,
    ssd_vgg16,
    stairnet_mobilenet,
    stairnet_vgg16,
)
from bam_exp.tasks.average_precision import Found, average_precision

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def with_bam(num_classes: int) -> Detector:
    return attach(stairnet_mobilenet(num_classes), BAM, at="classifier")


def stairnet_vgg16_bam(num_classes: int) -> Detector:
    return attach(stairnet_vgg16(num_classes), BAM, at="classifier")


@pytest.mark.slow
@pytest.mark.parametrize("make", [ssd_mobilenet, with_bam], ids=["ssd_mobilenet", "stairnet_mobilenet_bam"])
def test_eight_photos_are_learned_by_heart(tiny_coco: Path, make: Callable[[int], Detector]) -> None:
    torch.manual_seed(0)
    network = make(80).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    assert map50_after_training(network, optimizer, tiny_coco, size=160, photos=8, steps=160) > 95


@pytest.mark.slow
@pytest.mark.parametrize("make", [ssd_vgg16, stairnet_vgg16_bam], ids=["ssd_vgg16", "stairnet_vgg16_bam"])
def test_two_photos_are_learned_by_heart(tiny_coco: Path, make: Callable[[int], Detector]) -> None:
    """Large networks from random weights, which Adam takes less time to train than SGD."""
    torch.manual_seed(0)
    network = make(80).to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    assert map50_after_training(network, optimizer, tiny_coco, size=268, photos=2, steps=120) > 90


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize(
    ("make", "size", "rate"),
    [(ssd_vgg16, 300, 2e-4), (stairnet_vgg16_bam, 300, 2e-4), (faster_rcnn_resnet101, 320, 1e-4)],
    ids=["ssd_vgg16", "stairnet_vgg16_bam", "faster_rcnn_resnet101"],
)
def test_eight_photos_are_learned_by_heart_on_a_gpu(
    tiny_coco: Path, make: Callable[[int], Detector], size: int, rate: float
) -> None:
    torch.manual_seed(0)
    network = make(80).to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    assert map50_after_training(network, optimizer, tiny_coco, size=size, photos=8, steps=400) > 90


def map50_after_training(
    network: Detector, optimizer: torch.optim.Optimizer, data_root: Path, *, size: int, photos: int, steps: int
) -> float:
    """mAP@.5 in percent on the few photos that a network has been trained on, `size` pixels wide and high."""
    data, view = COCO(data_root, official=False), View(size)
    truth = data.annotations("train")
    reader = BoxedPhotos(truth, data.folder("train"), view, 0, difficult=True)
    chosen = [i for i in range(len(truth)) if 0 < len(reader.photo(i).boxes) <= 4][:photos]
    samples = [sample(reader.photo(i), view, seed=0, epoch=0, index=i) for i in chosen]
    images = torch.stack([one.pixels for one in samples]).float().div(127.5).sub(1)
    targets = [Target(i, (size, size), one.boxes, one.labels) for i, one in zip(chosen, samples, strict=True)]
    network.train().to(DEVICE, memory_format=torch.channels_last)
    images = images.to(DEVICE).contiguous(memory_format=torch.channels_last)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=steps)
    for _ in range(steps):
        terms, _ = network.losses(network(images), images, targets)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        found = network.detections(network(images), images, targets)
    rows = []
    for target, detected in zip(targets, found, strict=True):
        one = {name: tensor.cpu() for name, tensor in detected.items()}
        boxes = to_photo(one["boxes"], target.size, truth.sizes[target.number].tolist())
        columns = [
            torch.full((len(boxes), 1), float(target.number)),
            boxes,
            one["scores"][:, None],
            one["labels"][:, None],
        ]
        rows.append(torch.cat(columns, dim=1).double().numpy())
    figures = average_precision(truth, Found.of(np.concatenate(rows)), chosen, protocol="coco", num_classes=80)
    return float(figures["map50"])
