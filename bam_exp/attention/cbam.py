"""CBAM: convolutional block attention module (Woo, Park, Lee, Kweon, ECCV 2018)."""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from bam_exp.attention.gate import pool
from bam_exp.attention.knobs import Device, KernelSize, Rounding, hidden_width
from bam_exp.schema import checked


class CBAM(nn.Module):
    """Channel attention, then spatial attention on its result.

    Channel: sigmoid(MLP(average over H x W) + MLP(maximum over H x W)), one MLP C -> C / reduction -> C with biases.
    Spatial: sigmoid(BN(convolution of the average and the maximum over C)). Input and output are N x C x H x W.
    The paper does not mention the batch norm, but its authors' code (Jongchan/attention-module) has it, with momentum
    0.01, and so does this module. With k = channels / reduction it has 2Ck + C + k + 2 * kernel_size^2 + 2 parameters.

    Raises:
        ValueError: if reduction does not divide channels and rounding is "exact".
    """

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        reduction: PositiveInt = 16,
        kernel_size: KernelSize = 7,
        *,
        rounding: Rounding = "exact",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_width(channels, reduction, rounding)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)
        self._initialise()
        self.to(device=device, dtype=dtype)

    def _initialise(self) -> None:
        # In the authors' code the spatial batch norm starts at weight 0, so the spatial attention starts at 1/2 everywhere.
        if not self.conv.weight.is_meta:  # on meta, the first random number costs seconds of imports
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        nn.init.zeros_(self.bn.weight)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        channel: Tensor = (self.mlp(pool(x)) + self.mlp(x.amax((2, 3)))).sigmoid()
        x = x * channel[:, :, None, None]
        pooled = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), 1)
        spatial: Tensor = self.bn(self.conv(pooled)).sigmoid()
        return x * spatial
