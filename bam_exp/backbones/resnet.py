"""ResNet (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016) for CIFAR and for ImageNet."""

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from bam_exp.backbones.backbone import (
    Backbone,
    Residual,
    conv,
    linear_head,
    residual_stages,
    scaled,
    sequential,
)
from bam_exp.schema import checked

Stem = Literal["cifar", "imagenet"]
StrideIn = Literal["1x1", "3x3"]

BLOCKS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    20: (3, 3, 3),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
"""Depth to the number of blocks in each stage."""


class ResNet(Backbone):
    """ResNet-18, -34, -50, -101 and, with `widen`, WideResNet-18; ResNet-20 has the three stages of the CIFAR nets.

    `stem`: "cifar" is one 3x3 convolution, "imagenet" a 7x7 convolution of stride 2 and a max-pool.
    `stride_in`: which convolution of a bottleneck halves the map. The paper's GFLOPs demand the first "1x1";
    torchvision and the released code stride the "3x3". Without effect on the basic blocks of ResNet-18, -20 and -34.
    `widen`: factor on the width of every stage, rounded down; the stem keeps its width.
    Every shortcut that changes the shape is a projection (1x1 convolution and BatchNorm), in ResNet-20 too.
    Raises ValueError for a `widen` that leaves a layer no channel.
    """

    @checked
    def __init__(
        self,
        num_classes: PositiveInt,
        *,
        depth: Literal[18, 20, 34, 50, 101],
        stem: Stem,
        stride_in: StrideIn = "1x1",
        widen: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        blocks = BLOCKS[depth]
        width = 16 if depth == 20 else 64
        block: Callable[[int, int, int], Residual] = basic
        expansion = 1
        if depth >= 50:
            block = partial(bottleneck, stride_in=stride_in)
            expansion = 4
        widths = [expansion * scaled(width << i, widen, "widen") for i in range(len(blocks))]
        stages, seams = residual_stages(block, width, widths, blocks)
        super().__init__(
            resnet_stem(stem, width),
            stages,
            linear_head(widths[-1], num_classes),
            seams=seams,
            min_size=resnet_min_size(stem, len(blocks)),
        )
        self.strided_1x1 = depth >= 50 and stride_in == "1x1"

    def torchvision_names(self) -> dict[str, str]:
        """See `Backbone`. Raises ValueError if the stride is in the 1x1 convolution, which torchvision does not have."""
        return resnet_torchvision_names(self, strided_1x1=self.strided_1x1)


def basic(channels_in: int, channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    branch = sequential(
        conv1=conv(channels_in, channels, 3, stride),
        bn1=nn.BatchNorm2d(channels),
        relu1=nn.ReLU(inplace=True),
        conv2=conv(channels, channels, 3),
        bn2=nn.BatchNorm2d(channels),
    )
    return Residual(branch, projection(channels_in, channels, stride), out=sequential(relu=nn.ReLU(inplace=True)))


def bottleneck(
    channels_in: int, channels: int, stride: int, *, stride_in: StrideIn, groups: int = 1, width_per_group: int = 64
) -> Residual:
    """1x1, (grouped) 3x3 and 1x1 convolution; the width of the 3x3 is a quarter of `channels` in a ResNet."""
    inner = groups * (channels // 4 * width_per_group // 64)
    first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
    branch = sequential(
        conv1=conv(channels_in, inner, 1, first),
        bn1=nn.BatchNorm2d(inner),
        relu1=nn.ReLU(inplace=True),
        conv2=conv(inner, inner, 3, second, groups),
        bn2=nn.BatchNorm2d(inner),
        relu2=nn.ReLU(inplace=True),
        conv3=conv(inner, channels, 1),
        bn3=nn.BatchNorm2d(channels),
    )
    return Residual(branch, projection(channels_in, channels, stride), out=sequential(relu=nn.ReLU(inplace=True)))


def projection(channels_in: int, channels: int, stride: int) -> nn.Module:
    """The shortcut of a block: the identity, or a 1x1 convolution and BatchNorm if the shape changes."""
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    return sequential(conv=conv(channels_in, channels, 1, stride), bn=nn.BatchNorm2d(channels))


def resnet_stem(stem: Stem, width: int) -> nn.Sequential:
    """One 3x3 convolution ("cifar"), or a 7x7 of stride 2 and a 3x3 max-pool of stride 2 ("imagenet")."""
    if stem == "cifar":
        return sequential(conv1=conv(3, width, 3), bn1=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True))
    return sequential(
        conv1=conv(3, width, 7, stride=2),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
        pool=nn.MaxPool2d(3, stride=2, padding=1),
    )


def resnet_min_size(stem: Stem, stages: int) -> int:
    """The total stride of the network."""
    return (1 if stem == "cifar" else 4) << (stages - 1)


def resnet_torchvision_names(backbone: Backbone, *, strided_1x1: bool) -> dict[str, str]:
    """Map torchvision's names of the layers of a ResNet or ResNeXt to ours. Raises ValueError if `strided_1x1` is true."""
    if strided_1x1:
        raise ValueError("stride_in=1x1: torchvision's bottlenecks stride in the 3x3 convolution; choose stride_in=3x3")
    names = {}
    for ours, _ in backbone.named_modules():
        theirs = re.sub(r"^(stem|head)\.", "", ours)
        theirs = re.sub(r"^stages\.(\d+)", lambda stage: f"layer{int(stage[1]) + 1}", theirs)
        theirs = theirs.replace(".branch.", ".")
        theirs = theirs.replace(".shortcut.conv", ".downsample.0").replace(".shortcut.bn", ".downsample.1")
        names[theirs] = ours
    return names
