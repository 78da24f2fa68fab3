"""ECA: efficient channel attention (Wang, Wu, Zhu, Li, Zuo, Hu, CVPR 2020)."""

from math import log2

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from bam_exp.attention.gate import pool
from bam_exp.attention.knobs import Device, KernelSize
from bam_exp.schema import checked


class ECA(nn.Module):
    """F * sigmoid(1-D convolution over the C averages of F), without bias: kernel_size parameters.

    Input and output are N x C x H x W. `kernel_size=None` takes the paper's size, the odd number nearest to
    log2(C) / 2 + 1 / 2 and the higher one of two that are equally near (3 at C = 64, 5 at 256, 7 at 2048).
    """

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        kernel_size: KernelSize | None = None,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        size = kernel_size or int((log2(channels) + 1) / 2) // 2 * 2 + 1
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        attention: Tensor = self.conv(pool(x)[:, None])[:, 0].sigmoid()
        return x * attention[:, :, None, None]
