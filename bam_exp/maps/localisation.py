"""The relation of maps to the position of the object: means inside and outside its mask, area under the ROC curve."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from bam_exp.maps.capture import Maps


@dataclass(frozen=True)
class Estimate:
    """A mean over images."""

    mean: float
    half_width: float
    """Half-width of the 95 % interval, by the normal distribution."""

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """The mean of one value for each image."""
        return cls(values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values)))


def inside_and_outside(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each map over the pixels in its mask, and over the others: N and N.

    maps: N x h x w, enlarged to the size of the masks. masks: bool N x H x W.
    """
    values, inside = _at_the_size_of(maps, masks), masks.flatten(1).double()
    outside = 1 - inside
    return (values * inside).sum(1) / inside.sum(1), (values * outside).sum(1) / outside.sum(1)


def auc(maps: Tensor, masks: Tensor) -> Tensor:
    """The probability that a pixel in the mask has a higher value than one outside, ties counting half: N.

    maps: N x h x w, enlarged to the size of the masks. masks: bool N x H x W.
    """
    inside = masks.flatten(1).numpy()
    ranks = rankdata(_at_the_size_of(maps, masks).numpy(), axis=1)
    count = inside.sum(1)
    wins = (ranks * inside).sum(1) - count * (count + 1) / 2
    area: np.ndarray[tuple[int], np.dtype[np.float64]] = wins / (count * (inside.shape[1] - count))
    return Tensor(area)


def _at_the_size_of(maps: Tensor, masks: Tensor) -> Tensor:
    """Each pixel of a map as a block of equal pixels, flattened, in double precision: N x HW."""
    return F.interpolate(maps[:, None].double(), masks.shape[1:], mode="nearest").flatten(1)


@dataclass(frozen=True)
class Localisation:
    """The relation of one attention to the masks; each figure is a mean over images."""

    name: str
    inside: Estimate
    """M(F), averaged over the channels and the pixels of the mask."""
    outside: Estimate
    """The same over the other pixels."""
    difference: Estimate
    """Inside minus outside."""
    auc: Estimate
    """For M(F), averaged over the channels."""
    untrained_auc: Estimate
    auc_before: Estimate
    """For the norm of the map that the attention receives."""
    auc_after: Estimate
    """For the norm of the refined map."""


def localise(trained: Mapping[str, Maps], untrained: Mapping[str, Maps], masks: Tensor) -> list[Localisation]:
    """Relate each attention of a network to the masks of the images, bool N x H x W, after and before training."""
    rows = []
    for name, maps in trained.items():
        inside, outside = inside_and_outside(maps.attention, masks)
        rows.append(
            Localisation(
                name,
                Estimate.of(inside),
                Estimate.of(outside),
                Estimate.of(inside - outside),
                Estimate.of(auc(maps.attention, masks)),
                Estimate.of(auc(untrained[name].attention, masks)),
                Estimate.of(auc(maps.before, masks)),
                Estimate.of(auc(maps.after, masks)),
            )
        )
    return rows
