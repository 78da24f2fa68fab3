"""StairNet (Woo, Hwang, Kweon, "StairNet: Top-Down Semantic Aggregation for Accurate One Shot Detection", WACV 2018)."""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from bam_exp.backbones import initialise
from bam_exp.backbones.backbone import conv, sequential
from bam_exp.detectors.ssd import BOXES, SSD, BoxCounts, L2Norm, Maps, Scales
from bam_exp.detectors.ssd_small import MOBILENET_CHANNELS, MOBILENET_SCALES, mobilenet_parts
from bam_exp.detectors.ssd_vgg import VGG_CHANNELS, VGG_STEPS, VOC_SCALES, VGGDetector, vgg_parts
from bam_exp.schema import checked


class TopDown(nn.Module):
    """The maps of SSD at one width, each with the enlarged map above it added and smoothed.

    Args:
        channels_in: width of each map, the largest map first.
        channels: width of all maps that it yields.
        convolution: "full" 3x3 convolutions, or "separable" ones: depthwise, and across channels where the map grows.
        strides: of the enlargement of each map but the first.
        first: applied to the largest map before its lateral convolution.

    At the end of each of `levels`, after the smoothing, an attention can go.
    """

    def __init__(
        self,
        channels_in: Sequence[int],
        channels: int,
        *,
        convolution: Literal["full", "separable"],
        strides: Sequence[int],
        first: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first = first or nn.Identity()
        self.lateral = nn.ModuleList(
            sequential(conv=conv(width, channels, 1), bn=nn.BatchNorm2d(channels)) for width in channels_in
        )
        separable = convolution == "separable"
        self.up = nn.ModuleList(Enlarge(channels, stride, separable=separable) for stride in strides)
        self.levels = nn.ModuleList(
            sequential(
                conv=conv(channels, channels, 3, groups=channels if separable else 1),
                bn=nn.BatchNorm2d(channels),
                relu=nn.ReLU(inplace=True),
            )
            for _ in channels_in
        )
        initialise(self)

    def forward(self, maps: Maps) -> Maps:
        """One map for each level, of the size it had."""
        maps = [self.first(maps[0]), *maps[1:]]
        below: Tensor | None = None
        outputs: Maps = []
        for i in reversed(range(len(maps))):
            x = self.lateral[i](maps[i])
            if below is not None:
                x = x + self.up[i](below, x.shape[-2:])
            outputs.append(self.levels[i](x))
            below = x
        return outputs[::-1]


class Enlarge(nn.Module):
    """A 3x3 transposed convolution to a given size; a separable one is depthwise and followed by a 1x1 convolution."""

    def __init__(self, channels: int, stride: int, *, separable: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            channels, channels, 3, stride, padding=stride - 1, groups=channels if separable else 1, bias=False
        )
        self.bn = nn.BatchNorm2d(channels)
        self.across = nn.Sequential()
        if separable:
            self.across = sequential(conv=conv(channels, channels, 1), bn=nn.BatchNorm2d(channels))
        if not self.conv.weight.is_meta:
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """N x C x `size`."""
        y: Tensor = self.across(self.bn(self.conv(x, output_size=list(size))))
        return y


@checked
def stairnet_vgg16(num_classes: PositiveInt, *, boxes: BoxCounts = BOXES, scales: Scales = VOC_SCALES) -> VGGDetector:
    """StairNet on SSD300's VGG-16: width 256 and classifiers of their own for each of six levels (Table 4(b): 32.0M)."""
    # The 1x1 map is enlarged at stride 1. Every other map must be twice as large as the next, or one place less: those of
    # images of 300 to 307 pixels are.
    neck = TopDown(VGG_CHANNELS, 256, convolution="full", strides=(2, 2, 2, 2, 1), first=L2Norm(512))
    return VGGDetector(
        **vgg_parts(min_size=300), neck=neck, channels=[256] * 6, num_classes=num_classes, boxes=boxes, scales=scales,
        steps=VGG_STEPS, kernel=3, max_size=307,
    )  # fmt: skip


@checked
def stairnet_mobilenet(num_classes: PositiveInt, *, boxes: BoxCounts = BOXES, scales: Scales = MOBILENET_SCALES) -> SSD:
    """StairNet on SSD's MobileNet: width 128, separable convolutions and 1x1 classifiers (Table 4(b): 5.98M)."""
    neck = TopDown(MOBILENET_CHANNELS, 128, convolution="separable", strides=(2, 2, 2, 2, 2))
    return SSD(
        **mobilenet_parts(), neck=neck, channels=[128] * 6, num_classes=num_classes, boxes=boxes, scales=scales,
        steps=None, kernel=1,
    )  # fmt: skip
