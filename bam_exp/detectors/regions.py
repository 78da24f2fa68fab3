"""The two heads of Faster R-CNN, which are torchvision's: the one that proposes regions and the one that classifies them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

RATIOS = (0.5, 1.0, 2.0)
C4_ANCHORS = (64, 128, 256, 512)
PYRAMID_ANCHORS = (32, 64, 128, 256, 512)


class Sampler:
    """torchvision's BalancedPositiveNegativeSampler, whose draws for an image come from a generator of that image.

    What is drawn for an image then depends neither on the other images of the batch nor on the device.
    """

    def __init__(self, per_image: int, positive_fraction: float) -> None:
        self.per_image, self.positive_fraction = per_image, positive_fraction
        self.generators: Sequence[torch.Generator] = ()
        """One for each image of the next call."""
        self.share = 1.0
        """Of the last call, the drawn elements as a share of those that were wanted."""

    def __call__(self, matched: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positive and of the negative elements that are drawn from each image.

        Args:
            matched: of each image, for each element, 1 or more if it is positive, 0 if negative, -1 if neither.
        """
        positives, negatives, drawn = [], [], 0
        for values, generator in zip(matched, self.generators, strict=True):
            few = int(self.per_image * self.positive_fraction)
            positive, count = _drawn(values >= 1, few, generator)
            negative, rest = _drawn(values == 0, self.per_image - count, generator)
            positives.append(positive)
            negatives.append(negative)
            drawn += count + rest
        self.share = drawn / (self.per_image * len(matched))
        return positives, negatives


def _drawn(candidates: Tensor, wanted: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """A mask of so many of the candidates, or of all where there are fewer, and their number."""
    [indices] = torch.where(candidates)
    order = torch.randperm(len(indices), generator=generator)[:wanted]
    mask = torch.zeros_like(candidates, dtype=torch.uint8)
    mask[indices[order.to(indices.device)]] = 1
    return mask, len(order)


def region_proposals(channels: int, *, c4: bool) -> nn.Module:
    """torchvision's region proposal network with Chen & Gupta's numbers for C4, and with its own for a pyramid."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

    sizes = (C4_ANCHORS,) if c4 else tuple((size,) for size in PYRAMID_ANCHORS)
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 12000, "testing": 6000} if c4 else {"training": 2000, "testing": 1000},
        post_nms_top_n={"training": 2000, "testing": 300} if c4 else {"training": 2000, "testing": 1000},
        nms_thresh=0.7,
    )
    rpn.fg_bg_sampler = Sampler(256, 0.5)
    return cast(nn.Module, rpn)


def region_classifier(
    regions: nn.Module, box_head: nn.Module, predictor: nn.Module, *, c4: bool, nms: float, min_score: float
) -> nn.Module:
    """torchvision's classifier of regions: 256 of an image for C4 and 512 for a pyramid, a quarter of them objects."""
    from torchvision.models.detection.roi_heads import RoIHeads

    per_image = 256 if c4 else 512
    heads = RoIHeads(
        regions,
        box_head,
        predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=per_image,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=min_score,
        nms_thresh=nms,
        detections_per_img=100,
    )
    heads.fg_bg_sampler = Sampler(per_image, 0.25)
    return cast(nn.Module, heads)
