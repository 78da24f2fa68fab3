"""Faster R-CNN (Ren et al., NIPS 2015) on ResNet-101: the C4 form of Table 4(a), and feature pyramids."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from bam_exp.backbones import ResNet, Seam
from bam_exp.backbones.backbone import Residual, sequential
from bam_exp.backbones.resnet import StrideIn
from bam_exp.data.target import Target
from bam_exp.detectors.detector import Body, Detections, Detector, as_torchvision, prefixed
from bam_exp.detectors.regions import region_classifier, region_proposals
from bam_exp.schema import checked


class Outputs(NamedTuple):
    """The dense part: feature maps by level, and of each level objectness and offsets of its anchors."""

    features: dict[str, Tensor]
    objectness: list[Tensor]
    offsets: list[Tensor]


class FasterRCNN(Detector):
    """A region proposal network on the maps of a backbone, and a classifier of the proposed regions.

    `forward` runs the backbone and the head of the region proposal network; its cost is therefore without that of the
    regions, which depends on their number. Both heads and their losses are torchvision's.

    Args:
        backbone: stem and stages.
        pyramid: from the maps of all stages to the feature maps by level; None takes the last stage's map alone.
        rpn, roi_heads: torchvision's.
        seams: of the backbone, under the names here.
    """

    def __init__(
        self,
        backbone: Body,
        pyramid: nn.Module | None,
        rpn: nn.Module,
        roi_heads: nn.Module,
        *,
        seams: dict[str, list[Seam]],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.seams = seams
        self.min_size = 32

    def forward(self, images: Tensor) -> Outputs:
        """Feature maps, and objectness and offsets of the anchors."""
        maps = self.backbone(images)
        features: dict[str, Tensor] = {"0": maps[-1]} if self.pyramid is None else self.pyramid(maps)
        objectness, offsets = self.rpn.head(list(features.values()))  # type: ignore[operator]
        return Outputs(features, objectness, offsets)

    def losses(self, outputs: Outputs, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], Tensor]:
        """Objectness and offsets of sampled anchors, classes and offsets of sampled regions; the weight is the images.

        What is drawn for an image is a function of its target's seed. The terms are torchvision's, except that they are
        divided by the number of samples that a batch should have: where an image has too few anchors or regions, its share
        does not depend on the images beside it.
        """
        rpn, roi_heads = cast(Any, self.rpn), cast(Any, self.roi_heads)
        generators = [torch.Generator().manual_seed(target.seed) for target in targets]
        rpn.fg_bg_sampler.generators = roi_heads.fg_bg_sampler.generators = generators
        objects = as_torchvision(targets, images.device)
        sizes = [target.size for target in targets]
        proposals, terms = self._proposals(outputs, images, sizes, objects)
        _, roi_terms = roi_heads(_float(outputs.features), proposals, sizes, objects)
        terms = {name: term * rpn.fg_bg_sampler.share for name, term in terms.items()}
        roi_terms = {name: term * roi_heads.fg_bg_sampler.share for name, term in roi_terms.items()}
        return {**terms, **roi_terms}, images.new_tensor(float(len(targets)))

    def detections(self, outputs: Outputs, images: Tensor, targets: Sequence[Target]) -> list[Detections]:
        """The boxes that the classifier of regions finds after non-maximum suppression, 100 of an image at most."""
        sizes = [target.size for target in targets]
        proposals, _ = self._proposals(outputs, images, sizes, None)
        found, _ = self.roi_heads(_float(outputs.features), proposals, sizes)
        return list(found)

    def _proposals(
        self,
        outputs: Outputs,
        images: Tensor,
        sizes: list[tuple[int, int]],
        objects: list[dict[str, Tensor]] | None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Regions of each image and, given its objects, the losses of the region proposal network.

        torchvision's network runs its head itself; here the head has run, as a part of `forward`.
        """
        from torchvision.models.detection.image_list import ImageList

        rpn: Any = self.rpn
        head, rpn.head = rpn.head, _Given(outputs)
        try:
            proposals, terms = rpn(ImageList(images, sizes), outputs.features, objects)
        finally:
            rpn.head = head
        return proposals, terms

    def from_backbone(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As for every detector; the last stage of the C4 form stands in the classifier of regions."""
        renamed = super().from_backbone(weights)
        if self.pyramid is not None:
            return renamed
        last = f"backbone.stages.{len(self.backbone.stages)}."
        return {
            f"roi_heads.box_head.stage.{name.removeprefix(last)}" if name.startswith(last) else name: weight
            for name, weight in renamed.items()
        }


class _Given(nn.Module):
    """Stands for the head of a region proposal network that has already run."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs = [one.float() for one in outputs.objectness], [one.float() for one in outputs.offsets]

    def forward(self, _features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.outputs


class Pyramid(nn.Module):
    """torchvision's feature pyramid on the maps of all stages, with one more level by subsampling the last."""

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        self.fpn = FeaturePyramidNetwork(list(channels_in), channels, LastLevelMaxPool())
        self.levels = nn.ModuleList(nn.Sequential() for _ in range(len(channels_in) + 1))

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Maps by level: "0" is the largest, "pool" the smallest."""
        features = self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps)))
        return {name: level(x) for level, (name, x) in zip(self.levels, features.items(), strict=True)}


@checked
def faster_rcnn_resnet101(
    num_classes: PositiveInt,
    *,
    neck: Literal["c4", "fpn"] = "c4",
    stride_in: StrideIn = "1x1",
    nms: float = 0.3,
    min_score: float = 0.0,
) -> FasterRCNN:
    """Faster R-CNN on ResNet-101.

    Args:
        num_classes: classes without the background.
        neck: "c4" finds regions on the map of the third of four stages, and classifies them by the fourth, at stride 1
            (Chen & Gupta, arXiv 1702.02138); "fpn" does both on a feature pyramid (Lin et al., CVPR 2017).
        stride_in: of the bottleneck blocks, as in `ResNet`.
        nms: overlap above which the lower-scoring of two detections of a class is dropped.
        min_score: detections below it are dropped.
    """
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    network = ResNet(1, depth=101, stem="imagenet", stride_in=stride_in)
    stages, c4 = network.stages, neck == "c4"
    seams = prefixed(network.seams, "backbone.", ("bottleneck", "block", "block_output"))
    pyramid = None
    if c4:
        last = stages[3]
        stages = stages[:3]
        _at_stride_1(last)
        box_head = sequential(stage=last, levels=nn.Sequential(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        for kind, places in seams.items():
            seams[kind] = [seam for seam in places if not seam.name.startswith("backbone.stages.3")]
        seams["classifier"] = [Seam("roi_heads.box_head.levels", 2048)]
        channels, width = 1024, 2048
    else:
        pyramid = Pyramid([256, 512, 1024, 2048], 256)
        box_head = TwoMLPHead(256 * 7 * 7, 1024)
        seams["classifier"] = [Seam(f"pyramid.levels.{i}", 256) for i in range(5)]
        channels, width = 256, 1024
    regions = MultiScaleRoIAlign(["0"] if c4 else ["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    predictor = FastRCNNPredictor(width, num_classes + 1)
    return FasterRCNN(
        Body(network.stem, stages),
        pyramid,
        region_proposals(channels, c4=c4),
        region_classifier(regions, box_head, predictor, c4=c4, nms=nms, min_score=min_score),
        seams=seams,
    )


def _at_stride_1(stage: nn.Module) -> None:
    """Have a stage keep the size of its map."""
    for block in stage.modules():
        if isinstance(block, Residual):
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.stride = (1, 1)


def _float(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.float() for name, x in features.items()}
