"""SE: squeeze-and-excitation (Hu, Shen, Sun, CVPR 2018)."""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from bam_exp.attention.gate import pool
from bam_exp.attention.knobs import Device, Rounding, hidden_width
from bam_exp.schema import checked


class SE(nn.Module):
    """F * sigmoid(MLP(average of F over H x W)), the MLP being C -> C / reduction -> C.

    Input and output are N x C x H x W. Both layers have biases, as the parameters in Table 5 of the BAM paper demand.
    With k = channels / reduction it has 2Ck + C + k parameters.

    Raises:
        ValueError: if reduction does not divide channels and rounding is "exact".
    """

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        reduction: PositiveInt = 16,
        *,
        rounding: Rounding = "exact",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = hidden_width(channels, reduction, rounding)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        attention: Tensor = self.mlp(pool(x)).sigmoid()
        return x * attention[:, :, None, None]
