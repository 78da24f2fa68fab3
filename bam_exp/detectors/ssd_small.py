"""SSD on MobileNet and on ResNet-20."""

from typing import Annotated, Any

from pydantic import Field, PositiveInt
from torch import nn

from bam_exp.backbones import MobileNet, ResNet
from bam_exp.backbones.backbone import sequential
from bam_exp.detectors.detector import Body
from bam_exp.detectors.ssd import BOXES, SSD, BoxCounts, Levels, Scales, extra
from bam_exp.schema import checked

MOBILENET_SCALES = [0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05]


def mobilenet_parts() -> dict[str, Any]:
    """Backbone, extras and sizes of SSD on MobileNet, in the names of `SSD`; its levels have `MOBILENET_CHANNELS`."""
    network = MobileNet(1)
    extras = [extra(1024, 256, 512), extra(512, 128, 256), extra(256, 128, 256), extra(256, 64, 128)]
    return {
        "backbone": Body(network.stem, network.stages),
        "taps": [3, 4],
        "extras": extras,
        "seams": network.seams,
        "min_size": 32,
    }


MOBILENET_CHANNELS = (512, 1024, 512, 256, 256, 128)


@checked
def ssd_mobilenet(num_classes: PositiveInt, *, boxes: BoxCounts = BOXES, scales: Scales = MOBILENET_SCALES) -> SSD:
    """SSD on MobileNet with 1x1 classifiers: six levels of 19 to 1 places in an image of 300 (Table 4(b): 5.81M)."""
    return SSD(
        **mobilenet_parts(), neck=Levels(6), channels=MOBILENET_CHANNELS, num_classes=num_classes, boxes=boxes,
        scales=scales, steps=None, kernel=1,
    )  # fmt: skip


@checked
def ssd_resnet20(
    num_classes: PositiveInt,
    *,
    boxes: BoxCounts = [2, 2, 2],  # noqa: B006 (read only)
    scales: Scales = [0.14, 0.22, 0.3, 0.4],  # noqa: B006
    widen: Annotated[float, Field(gt=0)] = 1.0,
) -> SSD:
    """A small SSD on ResNet-20 with a stem of stride 2: levels of 16, 8 and 4 places in an image of 64. Not of the paper."""
    network = ResNet(1, depth=20, stem="cifar", widen=widen)
    network.stem.conv1.stride = (2, 2)  # type: ignore[assignment]
    widths = [seam.channels for seam in network.seams["bottleneck"]]
    last = 2 * widths[-1]
    last_level = sequential(conv=nn.Conv2d(last, last, 3, 2, 1), relu=nn.ReLU(inplace=True))
    return SSD(
        Body(network.stem, network.stages),
        [1, 2],
        [last_level],
        Levels(3),
        channels=(widths[-1], last, last),
        num_classes=num_classes,
        seams=network.seams,
        boxes=boxes,
        scales=scales,
        steps=None,
        kernel=3,
        min_size=32,
    )
