"""An extra convolution block where an attention would be, the control experiment of Table 1(c)."""

from pydantic import PositiveInt
from torch import Tensor, nn

from bam_exp.schema import checked


class ConvBlock(nn.Module):
    """One more block of the backbone, from N x C x H x W to the same shape; `attach` gets the block from the seam."""

    @checked
    def __init__(self, channels: PositiveInt, *, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y
