"""The contract of a detector, and the part of a backbone that a detector uses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bam_exp.backbones import Seam
from bam_exp.data.target import Target

Detections = dict[str, Tensor]
"""The detections of one image: "boxes" n x 4 (x1, y1, x2, y2 in pixels of the network's input), "scores" n and "labels" n
(1 ... classes)."""


class Detector(nn.Module):
    """A network that finds objects in images.

    `forward` is the dense part: everything that is computed for every image alike, so that it can be counted, compiled
    and run without ground truth. `losses` and `detections` turn its outputs into what training and testing need.
    `seams` holds the seams of the backbone and `classifier`, the map before each classifier.
    `min_size`, `max_size`: the smallest and the largest side of an image; `max_size` None is unlimited.
    """

    backbone: "Body"
    seams: dict[str, list[Seam]]
    min_size: int
    max_size: int | None = None

    def forward(self, images: Tensor) -> Any:
        """The outputs of the dense part for float images N x 3 x H x W."""
        raise NotImplementedError

    def losses(self, outputs: Any, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the loss of a batch, whose sum is minimised, and the weight of the batch.

        The loss of several batches together is the mean of their losses under these weights.
        """
        raise NotImplementedError

    def detections(self, outputs: Any, images: Tensor, targets: Sequence[Target]) -> list[Detections]:
        """The detections in each image; only the `size` of the targets is used."""
        raise NotImplementedError

    def from_backbone(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a backbone of `bam_exp.backbones` under the names here, without its classifier.

        Raises:
            ValueError: if a layer of the classifier that this detector uses has another shape.
        """
        return {f"backbone.{name}": weight for name, weight in weights.items() if not name.startswith("head.")}


class Body(nn.Module):
    """The stem and the stages of a backbone under the names that they have in it; a detector has no use for its head."""

    def __init__(self, stem: nn.Module, stages: nn.Sequential) -> None:
        super().__init__()
        self.stem = stem
        self.stages = stages

    def forward(self, images: Tensor) -> list[Tensor]:
        """The map after each stage."""
        maps = []
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def prefixed(seams: Mapping[str, Sequence[Seam]], prefix: str, kinds: Sequence[str]) -> dict[str, list[Seam]]:
    """The seams of a backbone that has become a part of another module."""
    return {
        kind: [Seam(f"{prefix}{seam.name}", seam.channels, seam.block) for seam in seams[kind]]
        for kind in kinds
        if kind in seams
    }


def xavier(module: nn.Module) -> None:
    """Xavier initialisation of every convolution, biases 0, as in the released SSD; on the meta device nothing is done."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def as_torchvision(targets: Sequence[Target], device: torch.device) -> list[dict[str, Tensor]]:
    """Targets in the form that torchvision's losses take."""
    return [{"boxes": target.boxes.to(device), "labels": target.labels.to(device)} for target in targets]
