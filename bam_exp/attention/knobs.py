"""Arguments that several attentions share."""

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field

Rounding = Literal["exact", "floor"]
Device = torch.device | str | int | None


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("should be odd, so that the map keeps its size")
    return size


KernelSize = Annotated[int, Field(gt=0, le=1023), AfterValidator(_odd)]
Dilation = Annotated[int, Field(gt=0, le=1024)]
"""Beyond the side of a map, all that is left of a 3x3 convolution is its middle, so that larger values mean nothing."""


def hidden_width(channels: int, reduction: int, rounding: Rounding) -> int:
    """The width of a hidden layer, channels / reduction.

    With rounding="floor" it is rounded down, as in the authors' code, but is at least 1. The paper's DenseNet (216 / 16)
    and MobileNet 0.7 (89 / 16) need that.

    Raises:
        ValueError: if reduction does not divide channels and rounding is "exact".
    """
    if rounding == "floor":
        return max(1, channels // reduction)
    if channels % reduction:
        divisors = [divisor for divisor in range(1, channels + 1) if channels % divisor == 0]
        below = [divisor for divisor in divisors if divisor < reduction][-1:]
        above = [divisor for divisor in divisors if divisor > reduction][:1]
        nearest = " or ".join(f"reduction={divisor}" for divisor in below + above)
        floor = hidden_width(channels, reduction, "floor")
        raise ValueError(
            f"reduction={reduction} does not divide the width {channels}: "
            f"take {nearest}, or rounding=floor (hidden width {floor})"
        )
    return channels // reduction
