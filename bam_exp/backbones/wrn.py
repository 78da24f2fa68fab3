"""WideResNet (Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016) for CIFAR."""

from functools import partial
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import nn

from bam_exp.backbones.backbone import Backbone, Residual, conv, linear_head, residual_stages, sequential
from bam_exp.backbones.preresnet import projection
from bam_exp.schema import checked


class WRN(Backbone):
    """WRN-`depth`-`widen`: three stages of (depth - 4) / 6 pre-activation blocks, 16, 32, 64 times `widen` wide.

    `dropout`: the probability between the two convolutions of a block.
    Raises ValueError for a depth that is not 6 n + 4.
    """

    @checked
    def __init__(
        self,
        num_classes: PositiveInt,
        *,
        depth: Annotated[int, Field(gt=0, le=1000)] = 28,
        widen: PositiveInt = 10,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth={depth}: a WRN has a depth of 6 n + 4 (10, 16, 22, 28, ...)")
        widths = [width * widen for width in (16, 32, 64)]
        stages, seams = residual_stages(partial(wide, dropout=dropout), 16, widths, [blocks] * 3)
        super().__init__(
            sequential(conv=conv(3, 16, 3)),
            stages,
            linear_head(widths[-1], num_classes, bn=nn.BatchNorm2d(widths[-1]), relu=nn.ReLU(inplace=True)),
            seams=seams,
            min_size=4,
        )


def wide(channels_in: int, channels: int, stride: int, *, dropout: float) -> Residual:
    """Two 3x3 convolutions with BatchNorm and ReLU before each; a shortcut that changes the width shares the first pair."""
    first = {"bn1": nn.BatchNorm2d(channels_in), "relu1": nn.ReLU(inplace=True)}
    rest = {
        "conv1": conv(channels_in, channels, 3, stride),
        "bn2": nn.BatchNorm2d(channels),
        "relu2": nn.ReLU(inplace=True),
        **({"dropout": nn.Dropout(dropout)} if dropout else {}),
        "conv2": conv(channels, channels, 3),
    }
    if channels_in == channels:
        return Residual(sequential(**first, **rest), nn.Identity())
    return Residual(sequential(**rest), projection(channels_in, channels, stride), pre=sequential(**first))
