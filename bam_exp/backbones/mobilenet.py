"""MobileNet v1 (Howard et al., arXiv 1704.04861, table 1)."""

from functools import partial
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import nn

from bam_exp.backbones.backbone import Backbone, Seam, conv, initialised, linear_head, scaled, sequential
from bam_exp.schema import checked

STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))
"""(width, blocks) of each stage, one stage for each size of the map: 112, 56, 28, 14 and 7 for an image of 224."""


class MobileNet(Backbone):
    """A 3x3 convolution of stride 2 and five stages of depthwise-separable blocks.

    `alpha`: factor on the width of every layer, rounded down (the paper's 2.30M for 0.7 demands that). The resolution
    factor rho of the paper is the size of the images, no property of the network.
    Seams: `bottleneck` at the end of stages 1, 2 and 3 (128, 256 and 512 channels), not of stage 0, as the paper's
    parameters demand; `block` the end of each depthwise-separable block.
    Raises ValueError for an `alpha` that leaves a layer no channel.
    """

    @checked
    def __init__(self, num_classes: PositiveInt, *, alpha: Annotated[float, Field(gt=0)] = 1.0) -> None:
        channels_in = scaled(32, alpha, "alpha")
        stem = sequential(
            conv=conv(3, channels_in, 3, stride=2), bn=nn.BatchNorm2d(channels_in), relu=nn.ReLU(inplace=True)
        )
        stages = nn.Sequential()
        seams: dict[str, list[Seam]] = {"bottleneck": [], "block": []}
        for i, (width, blocks) in enumerate(STAGES):
            channels = scaled(width, alpha, "alpha")
            one_more = partial(initialised, separable, channels, channels, 1)
            stage = nn.Sequential()
            for j in range(blocks):
                stage.append(separable(channels_in, channels, 2 if i > 0 and j == 0 else 1))
                seams["block"].append(Seam(f"stages.{i}.{j}", channels, one_more))
                channels_in = channels
            stages.append(stage)
            if 0 < i < len(STAGES) - 1:
                seams["bottleneck"].append(Seam(f"stages.{i}", channels, one_more))
        super().__init__(stem, stages, linear_head(channels_in, num_classes), seams=seams, min_size=32)


def separable(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 convolution and a 1x1 convolution."""
    return sequential(
        depthwise=conv(channels_in, channels_in, 3, stride, groups=channels_in),
        bn1=nn.BatchNorm2d(channels_in),
        relu1=nn.ReLU(inplace=True),
        pointwise=conv(channels_in, channels, 1),
        bn2=nn.BatchNorm2d(channels),
        relu2=nn.ReLU(inplace=True),
    )
