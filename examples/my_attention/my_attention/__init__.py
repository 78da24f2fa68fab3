"""SimAM, an attention without parameters (Yang, Zhang, Li, Xie, ICML 2021), as an example of an attention outside bam_exp."""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from bam_exp.schema import checked


class SimAM(nn.Module):
    """F * sigmoid(1 / e*), where e* is the energy of a pixel within its channel (equation 5 of the paper).

    Input and output are N x C x H x W. The keyword arguments are the keys of the config; `channels` comes from the backbone.
    """

    @checked
    def __init__(
        self,
        channels: PositiveInt,
        *,
        coefficient: PositiveFloat = 1e-4,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.coefficient = coefficient

    def forward(self, x: Tensor) -> Tensor:
        distance = (x - x.mean(dim=(2, 3), keepdim=True)).square()
        variance = distance.sum(dim=(2, 3), keepdim=True) / max(x.shape[2] * x.shape[3] - 1, 1)
        return x * torch.sigmoid(distance / (4 * (variance + self.coefficient)) + 0.5)
