"""The forms of BAM that the benchmarks compare: ours, and the released one as its authors wrote it."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bam_exp.attention import BAM, attach
from bam_exp.attention.bam import ExpandedBatchNorm
from bam_exp.backbones.backbone import Residual
from bam_exp.config import Chosen, compose

Attention = Literal["none", "bam", "released"]

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
RELEASED: dict[str, Any] = {"combine": "product", "norm": "released", "rounding": "floor"}
"""The keyword arguments of the released BAM."""


class LiteralBAM(BAM):
    """BAM as the authors' code writes it: both branches expanded to N x C x H x W, and `attention * x`.

    The product has the memory format of its first factor, so a channels_last map leaves as N x C x H x W. It is for training mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        assert self.channel is not None
        assert self.channel_norm is not None
        assert self.spatial is not None
        channel = self.channel_norm(self.channel(F.avg_pool2d(x, x.shape[2:]).flatten(1)))[:, :, None, None].expand_as(
            x
        )
        spatial = self.spatial(x).expand_as(x)
        if isinstance(self.spatial_norm, ExpandedBatchNorm):
            weight, bias = self.spatial_norm.weight, self.spatial_norm.bias
            spatial = F.batch_norm(spatial, None, None, weight, bias, training=True)
        attention = 1 + torch.sigmoid(channel + spatial if self.combine == "sum" else channel * spatial)
        return attention * x


def network_of(backbone: str, attention: Attention, *, literal: bool = False) -> nn.Module:
    """The network of conf/backbone/<backbone>.yaml for 100 classes with an attention, with the same weights each time.

    Residual branches start at a fifth of their gain: at a random start rounding alone decides enough ReLUs otherwise than
    float64 does that the gradients' errors say nothing.
    """
    choice = Chosen.of(compose([f"backbone={backbone}"])).backbone
    torch.manual_seed(0)
    network: nn.Module = choice.make(100)
    for block in network.modules():
        if isinstance(block, Residual):
            layers = [layer for layer in block.branch if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
            layers[-1].weight.data.mul_(0.2)
    if attention != "none":
        literal = literal or attention == "released"
        attach(network, LiteralBAM if literal else BAM, **(RELEASED if attention == "released" else {}))
    return network
