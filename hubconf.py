"""Entry points of `torch.hub`: `torch.hub.load("OWNER/bam_exp", "bam", 256)`, or with source="local" from a checkout."""

from typing import Any

from torch import nn

from bam_exp.attention import BAM
from bam_exp.attention import attach as _attach

dependencies = ["torch", "pydantic"]


def bam(channels: int, reduction: int = 16, dilation: int = 4, **knobs: Any) -> BAM:
    """One BAM for maps of N x channels x H x W; knobs: branches, combine, norm, rounding."""
    return BAM(channels, reduction, dilation, **knobs)


def attach(network: nn.Module, at: Any = "auto", **knobs: Any) -> nn.Module:
    """The network with a BAM at each of its bottlenecks, in place; knobs are those of BAM, `example` and `channels`."""
    return _attach(network, BAM, at=at, **knobs)
