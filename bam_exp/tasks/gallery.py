"""A picture of test images with their objects, and beside them what a detector finds."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bam_exp.data.boxed_set import DetectionSet
from bam_exp.data.target import Target

SIDE = 320
"""Images are enlarged or reduced until their longer side has so many pixels."""


class Shown(NamedTuple):
    """An image of a batch, its objects and beside them its detections."""

    image: Tensor
    """Normalised, 3 x H x W."""
    target: Target
    found: dict[str, Tensor]


def gallery(shown: Sequence[Shown], data: DetectionSet, *, least_score: float = 0.4) -> bytes:
    """A PNG with two images in a row: the objects of each in green, beside them its detections of at least this score in red."""
    from torchvision.utils import make_grid

    names = ["background", *data.class_names()]
    tiles = []
    for image, target, found in shown:
        kept = found["scores"] >= least_score
        objects = [names[label] for label in target.labels.tolist()]
        detections = [
            f"{names[label]} {score:.2f}"
            for label, score in zip(found["labels"][kept].tolist(), found["scores"][kept].tolist(), strict=True)
        ]
        height, width = target.size
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
        pixels = (image[:, :height, :width] * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        tiles.append(_tile(pixels, target.boxes.cpu(), objects, "limegreen"))
        tiles.append(_tile(pixels, found["boxes"][kept], detections, "red"))
    content = io.BytesIO()
    Image.fromarray(make_grid(tiles, nrow=4, padding=4).permute(1, 2, 0).numpy()).save(content, "PNG")
    return content.getvalue()


def _tile(pixels: Tensor, boxes: Tensor, labels: list[str], colour: str) -> Tensor:
    """A square of SIDE x SIDE with the image, its boxes and their names in the upper left corner of each."""
    from torchvision.utils import draw_bounding_boxes

    scale = SIDE / max(pixels.shape[1:])
    height, width = (round(side * scale) for side in pixels.shape[1:])
    pixels = F.interpolate(pixels[None], (height, width), mode="nearest-exact" if scale > 1 else "bilinear")[0]
    boxes = (boxes * scale).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([width - 1, height - 1]).repeat(2))
    visible = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    if visible.any():
        names = [label for label, seen in zip(labels, visible.tolist(), strict=True) if seen]
        pixels = draw_bounding_boxes(
            pixels,
            boxes[visible],
            names,
            colors=colour,
            width=2,
            label_colors="white",
            label_background_colors=colour,
            fill_labels=True,
        )
    return F.pad(pixels, (0, SIDE - width, 0, SIDE - height))
