"""SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360, and the authors' release of version 1.1)."""

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from bam_exp.backbones.backbone import Backbone, Seam, initialised, sequential
from bam_exp.schema import checked

STAGES = (((3, 128), (4, 128)), ((6, 256), (7, 256)), ((9, 384), (10, 384), (11, 512), (12, 512)))
"""The Fire modules of each stage: (index in torchvision's `features`, width)."""


class SqueezeNet(Backbone):
    """Three stages of Fire modules and a classifier that is a 1x1 convolution; torchvision's SqueezeNet 1.1 by default.

    `stem_padding`: of the first convolution; an image of 224 makes stages of 55, 27 and 13 pixels a side with 0, and of
    56, 28 and 14 with 1.
    `pool`: whether the mean over the map is taken "after" the classifier or "before" it. The paper's 0.290 and 0.304
    GFLOPs demand `stem_padding=1` and `pool="before"`, with the additions of biases counted.
    `dropout`: the probability before the classifier.
    Seams: `bottleneck` before the max-pools between the stages (128, 256 channels); `block` the end of each Fire.
    """

    @checked
    def __init__(
        self,
        num_classes: PositiveInt,
        *,
        stem_padding: Literal[0, 1] = 0,
        pool: Literal["after", "before"] = "after",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ) -> None:
        channels_in = 64
        stem = sequential(
            conv=nn.Conv2d(3, channels_in, 3, stride=2, padding=stem_padding),
            relu=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        )
        stages = nn.Sequential()
        seams: dict[str, list[Seam]] = {"bottleneck": [], "block": []}
        for i, fires in enumerate(STAGES):
            stage = nn.Sequential()
            if i > 0:
                stage.add_module("pool", nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for j, (_, channels) in enumerate(fires):
                stage.add_module(str(j), Fire(channels_in, channels))
                one_more = partial(initialised, Fire, channels, channels)
                seams["block"].append(Seam(f"stages.{i}.{j}.out", channels, one_more))
                channels_in = channels
            stages.append(stage)
            if i < len(STAGES) - 1:
                seams["bottleneck"].append(Seam(f"stages.{i}", channels_in, one_more))
        mean = {"pool": nn.AdaptiveAvgPool2d(1)}
        head = sequential(
            **(mean if pool == "before" else {}),
            dropout=nn.Dropout(dropout),
            conv=nn.Conv2d(channels_in, num_classes, 1),
            relu=nn.ReLU(inplace=True),
            **(mean if pool == "after" else {}),
            flatten=nn.Flatten(),
        )
        super().__init__(stem, stages, head, seams=seams, min_size=17 - 2 * stem_padding)
        self.stem_padding = stem_padding
        self.pool = pool

    def torchvision_names(self) -> dict[str, str]:
        """See `Backbone`. Raises ValueError if `stem_padding` or `pool` is not torchvision's."""
        if self.stem_padding != 0 or self.pool != "after":
            wrong = f"stem_padding={self.stem_padding}, pool={self.pool}"
            raise ValueError(f"{wrong}: torchvision's SqueezeNet has stem_padding=0, pool=after")
        names = {"features.0": "stem.conv", "classifier.1": "head.conv"}
        for i, fires in enumerate(STAGES):
            for j, (index, _) in enumerate(fires):
                for layer in ("squeeze", "expand1x1", "expand3x3"):
                    names[f"features.{index}.{layer}"] = f"stages.{i}.{j}.{layer}"
        return names


class Fire(nn.Module):
    """A 1x1 convolution to an eighth of `channels`, then a 1x1 and a 3x3 to half of them each, side by side."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, channels // 8, 1)
        self.expand1x1 = nn.Conv2d(channels // 8, channels // 2, 1)
        self.expand3x3 = nn.Conv2d(channels // 8, channels // 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.out = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        out: Tensor = self.out(self.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1)))
        return out
