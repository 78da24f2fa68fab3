"""DenseNet-BC (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017) for CIFAR."""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from bam_exp.backbones.backbone import Backbone, Seam, conv, linear_head, scaled, sequential
from bam_exp.schema import checked


class DenseNet(Backbone):
    """Three stages of (depth - 4) / 6 dense layers that add `growth_rate` channels each, and transitions between them.

    A transition keeps the share `compression` of the channels and halves the map; it opens the stage that follows it.
    Seams: `bottleneck` before and after each transition, as in the paper; `block` the end of each dense layer's branch,
    before the concatenation, where the map has only `growth_rate` channels (a reduction must not exceed that);
    `block_output` the whole map after it. No dense layer keeps the width, so no seam has a `block`.
    Raises ValueError for a depth that is not 6 n + 4 and for a compression that leaves no channel.
    """

    @checked
    def __init__(
        self,
        num_classes: PositiveInt,
        *,
        depth: Annotated[int, Field(gt=0, le=1000)] = 100,
        growth_rate: PositiveInt = 12,
        compression: Annotated[float, Field(gt=0, le=1)] = 0.5,
    ) -> None:
        layers, rest = divmod(depth - 4, 6)
        if layers < 1 or rest:
            raise ValueError(f"depth={depth}: a DenseNet-BC has a depth of 6 n + 4 (..., 94, 100, 106, ...)")
        channels = 2 * growth_rate
        stem = sequential(conv=conv(3, channels, 3))
        stages = nn.Sequential()
        seams: dict[str, list[Seam]] = {"bottleneck": [], "block": [], "block_output": []}
        for i in range(3):
            stage = nn.Sequential()
            if i > 0:
                seams["bottleneck"].append(Seam(f"stages.{i - 1}", channels))
                compressed = scaled(channels, compression, "compression")
                stage.add_module("transition", transition(channels, compressed))
                channels = compressed
                seams["bottleneck"].append(Seam(f"stages.{i}.transition", channels))
            for j in range(layers):
                stage.add_module(str(j), DenseLayer(channels, growth_rate))
                channels += growth_rate
                seams["block"].append(Seam(f"stages.{i}.{j}.branch", growth_rate))
                seams["block_output"].append(Seam(f"stages.{i}.{j}.out", channels))
            stages.append(stage)
        head = linear_head(channels, num_classes, bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True))
        super().__init__(stem, stages, head, seams=seams, min_size=4)


class DenseLayer(nn.Module):
    """Append `growth` channels to `x`, computed by a 1x1 convolution to 4 `growth` channels and a 3x3 convolution."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.branch = sequential(
            bn1=nn.BatchNorm2d(channels),
            relu1=nn.ReLU(inplace=True),
            conv1=conv(channels, 4 * growth, 1),
            bn2=nn.BatchNorm2d(4 * growth),
            relu2=nn.ReLU(inplace=True),
            conv2=conv(4 * growth, growth, 3),
        )
        self.out = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.cat([x, self.branch(x)], dim=1))
        return out


def transition(channels_in: int, channels: int) -> nn.Sequential:
    """A 1x1 convolution to `channels` channels, and an average that halves the size."""
    return sequential(
        bn=nn.BatchNorm2d(channels_in),
        relu=nn.ReLU(inplace=True),
        conv=conv(channels_in, channels, 1),
        pool=nn.AvgPool2d(2),
    )
