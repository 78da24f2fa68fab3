"""ResNeXt (Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017)."""

from functools import partial
from typing import Literal

from pydantic import PositiveInt

from bam_exp.backbones.backbone import Backbone, linear_head, residual_stages
from bam_exp.backbones.resnet import (
    Stem,
    StrideIn,
    bottleneck,
    resnet_min_size,
    resnet_stem,
    resnet_torchvision_names,
)
from bam_exp.schema import checked

BLOCKS = {29: (3, 3, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNeXt(Backbone):
    """A ResNet of bottlenecks whose 3x3 convolutions have `groups` groups, of `width_per_group` channels in stage 0.

    ResNeXt-29 has the three stages of the CIFAR nets. `stem` and `stride_in` are those of `ResNet`: the paper's GFLOPs
    demand the stride in the first "1x1" convolution, torchvision's networks stride the "3x3".
    """

    @checked
    def __init__(
        self,
        num_classes: PositiveInt,
        *,
        depth: Literal[29, 50, 101],
        groups: PositiveInt,
        width_per_group: PositiveInt,
        stem: Stem,
        stride_in: StrideIn = "1x1",
    ) -> None:
        blocks = BLOCKS[depth]
        widths = [256 << i for i in range(len(blocks))]
        block = partial(bottleneck, stride_in=stride_in, groups=groups, width_per_group=width_per_group)
        stages, seams = residual_stages(block, 64, widths, blocks)
        super().__init__(
            resnet_stem(stem, 64),
            stages,
            linear_head(widths[-1], num_classes),
            seams=seams,
            min_size=resnet_min_size(stem, len(blocks)),
        )
        self.strided_1x1 = stride_in == "1x1"

    def torchvision_names(self) -> dict[str, str]:
        """See `Backbone`. Raises ValueError if the stride is in the 1x1 convolution, which torchvision does not have."""
        return resnet_torchvision_names(self, strided_1x1=self.strided_1x1)
