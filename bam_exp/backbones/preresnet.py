"""Pre-activation ResNet (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016) for CIFAR."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from bam_exp.backbones.backbone import Backbone, Residual, conv, linear_head, residual_stages, sequential
from bam_exp.backbones.resnet import StrideIn
from bam_exp.schema import checked


class PreResNet(Backbone):
    """Three stages of `blocks` pre-activation blocks each.

    `block`: "basic" (depth 6 blocks + 2) or "bottleneck" (depth 9 blocks + 2). What the paper calls PreResNet110 has,
    by its parameters and GFLOPs, 18 bottlenecks a stage: a depth of 164.
    `stride_in`: which convolution of a bottleneck halves the map; the paper's GFLOPs demand the first "1x1". Without
    effect on basic blocks.
    """

    @checked
    def __init__(
        self,
        num_classes: PositiveInt,
        *,
        blocks: Annotated[int, Field(gt=0, le=1000)] = 18,
        block: Literal["basic", "bottleneck"] = "bottleneck",
        stride_in: StrideIn = "1x1",
    ) -> None:
        make: Callable[[int, int, int], Residual] = basic
        expansion = 1
        if block == "bottleneck":
            make = partial(bottleneck, stride_in=stride_in)
            expansion = 4
        widths = [expansion * width for width in (16, 32, 64)]
        stages, seams = residual_stages(make, 16, widths, [blocks] * 3)
        super().__init__(
            sequential(conv=conv(3, 16, 3)),
            stages,
            linear_head(widths[-1], num_classes, bn=nn.BatchNorm2d(widths[-1]), relu=nn.ReLU(inplace=True)),
            seams=seams,
            min_size=4,
        )


def basic(channels_in: int, channels: int, stride: int) -> Residual:
    """Two 3x3 convolutions, with BatchNorm and ReLU before each."""
    branch = sequential(
        bn1=nn.BatchNorm2d(channels_in),
        relu1=nn.ReLU(inplace=True),
        conv1=conv(channels_in, channels, 3, stride),
        bn2=nn.BatchNorm2d(channels),
        relu2=nn.ReLU(inplace=True),
        conv2=conv(channels, channels, 3),
    )
    return Residual(branch, projection(channels_in, channels, stride))


def bottleneck(channels_in: int, channels: int, stride: int, *, stride_in: StrideIn) -> Residual:
    """1x1, 3x3 and 1x1 convolution, with BatchNorm and ReLU before each."""
    inner = channels // 4
    first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
    branch = sequential(
        bn1=nn.BatchNorm2d(channels_in),
        relu1=nn.ReLU(inplace=True),
        conv1=conv(channels_in, inner, 1, first),
        bn2=nn.BatchNorm2d(inner),
        relu2=nn.ReLU(inplace=True),
        conv2=conv(inner, inner, 3, second),
        bn3=nn.BatchNorm2d(inner),
        relu3=nn.ReLU(inplace=True),
        conv3=conv(inner, channels, 1),
    )
    return Residual(branch, projection(channels_in, channels, stride))


def projection(channels_in: int, channels: int, stride: int) -> nn.Module:
    """The shortcut of a block: the identity, or a 1x1 convolution alone if the shape changes."""
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    return conv(channels_in, channels, 1, stride)
