"""SSD (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016) on any backbone."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from bam_exp.backbones import Seam
from bam_exp.backbones.backbone import sequential
from bam_exp.data.target import Target
from bam_exp.detectors.detector import Body, Detections, Detector, as_torchvision, prefixed, xavier

if TYPE_CHECKING:
    from torchvision.models.detection import ssd as torchvision_ssd

Maps = list[Tensor]
Outputs = list[tuple[Tensor, Tensor]]
"""For each level: class logits N x (boxes * classes) x H x W and box offsets N x (boxes * 4) x H x W."""

BoxCounts = list[Literal[2, 4, 6]]
Scales = list[PositiveFloat]
RATIOS: dict[int, list[int]] = {2: [], 4: [2], 6: [2, 3]}
"""Aspect ratios of the default boxes, for their number at a place: two squares, and both orientations of each ratio."""


BOXES: BoxCounts = [6, 6, 6, 6, 4, 4]
"""The numbers of boxes of Table 4(b)."""


class SSD(Detector):
    """Maps of several sizes, each with a convolution that classifies its default boxes and one that moves them.

    Args:
        backbone: stem and stages.
        taps: the stages whose maps are levels; stages after the last of them are computed all the same.
        extras: layers that follow the backbone; the output of each is a level.
        neck: from the maps of the levels to the maps before the classifiers; its `levels` are nn.Sequential modules.
        channels: width of each map before its classifier.
        num_classes: classes without the background.
        boxes: default boxes at each place of a level.
        scales: side of the default boxes of each level and of one more, as fractions of the image's side.
        steps: pixels between the default boxes of each level in an image of 300; None spreads them evenly.
        kernel: side of the classifiers' convolutions.

    Raises:
        ValueError: if the numbers of boxes and scales do not fit the levels.
    """

    def __init__(
        self,
        backbone: Body,
        taps: Sequence[int],
        extras: Sequence[nn.Module],
        neck: nn.Module,
        *,
        channels: Sequence[int],
        num_classes: int,
        seams: dict[str, list[Seam]],
        boxes: Sequence[int],
        scales: Sequence[float],
        steps: Sequence[int] | None,
        kernel: int,
        min_size: int,
        max_size: int | None = None,
    ) -> None:
        super().__init__()
        if len(boxes) != len(channels):
            raise ValueError(f"boxes={list(boxes)}: should have {len(channels)} numbers, one for each level")
        if len(scales) != len(channels) + 1:
            raise ValueError(f"scales={list(scales)}: should have {len(channels) + 1} numbers, one more than levels")
        self.taps, self.outputs = tuple(taps), num_classes + 1
        self.box_counts, self.scales, self.steps = list(boxes), list(scales), steps and list(steps)
        self.backbone = backbone
        self.extras = nn.ModuleList(extras)
        self.neck = neck
        self.heads = nn.ModuleList(
            sequential(
                classes=nn.Conv2d(width, count * self.outputs, kernel, padding=kernel // 2),
                boxes=nn.Conv2d(width, count * 4, kernel, padding=kernel // 2),
            )
            for width, count in zip(channels, boxes, strict=True)
        )
        classifiers = [Seam(f"neck.levels.{i}", width) for i, width in enumerate(channels)]
        self.seams = {
            **prefixed(seams, "backbone.", ("bottleneck", "block", "block_output")),
            "classifier": classifiers,
        }
        self.min_size, self.max_size = min_size, max_size
        xavier(self.extras)
        xavier(self.heads)

    def forward(self, images: Tensor) -> Outputs:
        """Logits and offsets of the default boxes of every level."""
        stages = self.backbone(images)
        maps: Maps = [stages[i] for i in self.taps]
        x = stages[-1]
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        outputs: Outputs = []
        for level, head in zip(self.neck(maps), self.heads, strict=True):
            outputs.append((head.get_submodule("classes")(level), head.get_submodule("boxes")(level)))
        return outputs

    def losses(self, outputs: Outputs, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], Tensor]:
        """Smooth L1 of the matched default boxes and cross-entropy with three negatives for a positive, per positive.

        A batch without any object has a loss of 0; the weight of a batch is its number of matched default boxes.
        """
        from torchvision.ops import box_iou

        anchors = self._anchors(outputs, images)
        objects = as_torchvision(targets, images.device)
        matched = []
        for one in objects:
            if one["boxes"].numel():
                matched.append(self._torchvision.proposal_matcher(box_iou(one["boxes"], anchors)))
            else:
                matched.append(torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device))
        terms: dict[str, Tensor] = self._torchvision.compute_loss(
            objects, self._flat(outputs), [anchors] * len(objects), matched
        )
        positives = torch.stack([(indices >= 0).sum() for indices in matched]).sum()
        return terms, positives.to(torch.float32)

    def detections(self, outputs: Outputs, images: Tensor, targets: Sequence[Target]) -> list[Detections]:
        """Boxes with a score above 0.01 after non-maximum suppression at 0.45, 200 of an image at most."""
        anchors = self._anchors(outputs, images)
        found: list[Detections] = self._torchvision.postprocess_detections(
            self._flat(outputs), [anchors] * len(images), [target.size for target in targets]
        )
        return found

    @cached_property
    def _torchvision(self) -> "torchvision_ssd.SSD":
        """torchvision's SSD without a network: its default boxes, matching, loss and non-maximum suppression."""
        from torchvision.models.detection import ssd as torchvision_ssd
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator  # takes 1.5 seconds

        ratios = [RATIOS[count] for count in self.box_counts]
        generator = DefaultBoxGenerator(ratios, scales=self.scales, steps=self.steps)
        # The size is that of a resizing which is not used.
        return torchvision_ssd.SSD(nn.Identity(), generator, (300, 300), self.outputs, head=nn.Identity())

    def _anchors(self, outputs: Outputs, images: Tensor) -> Tensor:
        """The default boxes of all levels, float32 n x 4."""
        from torchvision.models.detection.image_list import ImageList

        height, width = images.shape[-2:]
        one = ImageList(images[:1], [(height, width)])
        # In float32, whatever the precision of the network's outputs.
        maps = [logits[:1, :1].detach().float() for logits, _ in outputs]
        anchors: Tensor = self._torchvision.anchor_generator(one, maps)[0]
        return anchors

    def _flat(self, outputs: Outputs) -> dict[str, Tensor]:
        """Outputs of all levels as torchvision orders them: N x boxes x columns, float32."""
        columns = {"cls_logits": (0, self.outputs), "bbox_regression": (1, 4)}
        return {
            name: torch.cat(
                [_by_box(maps[part], width).permute(0, 3, 4, 1, 2).flatten(1, 3).float() for maps in outputs],
                dim=1,
            )
            for name, (part, width) in columns.items()
        }


def _by_box(maps: Tensor, width: int) -> Tensor:
    """N x (boxes * width) x H x W to N x boxes x width x H x W."""
    count, channels, *sides = maps.shape
    return maps.reshape(count, channels // width, width, *sides)


class Levels(nn.Module):
    """The maps of the levels, the largest after `first`, as they are; at the end of each of `levels` an attention can go."""

    def __init__(self, count: int, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or nn.Identity()
        self.levels = nn.ModuleList(nn.Sequential() for _ in range(count))

    def forward(self, maps: Maps) -> Maps:
        """One map for each level."""
        maps = [self.first(maps[0]), *maps[1:]]
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


class L2Norm(nn.Module):
    """Every place of a map divided by its length over the channels and scaled per channel (Liu et al., section 3.1)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W."""
        return nn.functional.normalize(x) * self.scale.view(1, -1, 1, 1)


def extra(channels_in: int, hidden: int, channels: int, *, stride: int = 2, padding: int = 1) -> nn.Sequential:
    """A 1x1 convolution, ReLU, a 3x3 convolution and ReLU; the second makes the map smaller."""
    return sequential(
        reduce=nn.Conv2d(channels_in, hidden, 1),
        relu1=nn.ReLU(inplace=True),
        conv=nn.Conv2d(hidden, channels, 3, stride, padding),
        relu2=nn.ReLU(inplace=True),
    )
