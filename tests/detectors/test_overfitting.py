"""A detector that sees the same few photos again and again finds what is in them."""

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
from bam_exp.detectors import Detector, ssd_mobilenet, stairnet_mobilenet
from bam_exp.tasks.average_precision import Found, average_precision

STEPS = 160


def with_bam(num_classes: int) -> Detector:
    return attach(stairnet_mobilenet(num_classes), BAM, at="classifier")


@pytest.mark.slow
@pytest.mark.parametrize("make", [ssd_mobilenet, with_bam], ids=["ssd_mobilenet", "stairnet_mobilenet_bam"])
def test_eight_photos_are_learned_by_heart(tiny_coco: Path, make: type[Detector]) -> None:
    torch.manual_seed(0)
    data, view = COCO(tiny_coco, official=False), View(160)
    truth = data.annotations("train")
    photos = BoxedPhotos(truth, data.folder("train"), view, 0, difficult=True)
    chosen = [i for i in range(len(truth)) if 0 < len(photos.photo(i).boxes) <= 4][:8]
    samples = [sample(photos.photo(i), view, seed=0, epoch=0, index=i) for i in chosen]
    images = torch.stack([one.pixels for one in samples]).float().div(127.5).sub(1)
    targets = [Target(i, (160, 160), one.boxes, one.labels) for i, one in zip(chosen, samples, strict=True)]
    network = make(80).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=STEPS)
    for _ in range(STEPS):
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
    for target, one in zip(targets, found, strict=True):
        boxes = to_photo(one["boxes"], target.size, truth.sizes[target.number].tolist())
        columns = [
            torch.full((len(boxes), 1), float(target.number)),
            boxes,
            one["scores"][:, None],
            one["labels"][:, None],
        ]
        rows.append(torch.cat(columns, dim=1).double().numpy())
    figures = average_precision(truth, Found.of(np.concatenate(rows)), chosen, protocol="coco", num_classes=80)
    assert figures["map50"] > 95
