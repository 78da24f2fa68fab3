"""SSD300 on VGG-16 (Liu et al., ECCV 2016)."""

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt
from torch import Tensor, nn

from bam_exp.backbones import initialise
from bam_exp.backbones.backbone import sequential
from bam_exp.backbones.vgg import vgg_stages
from bam_exp.detectors.detector import Body
from bam_exp.detectors.ssd import BOXES, SSD, BoxCounts, L2Norm, Levels, Scales, extra
from bam_exp.schema import checked

VOC_SCALES = [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]


class VGGDetector(SSD):
    """An SSD on VGG-16, whose conv6 and conv7 are the subsampled fc6 and fc7 of the classifier (Liu et al., section 3.1)."""

    def from_backbone(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As for every detector; conv6 and conv7 are filled where the file holds the linear layers of ImageNet's VGG."""
        renamed = super().from_backbone(weights)
        if "head.fc1.weight" not in weights or "head.fc2.weight" not in weights:
            return renamed
        fc6, fc7 = weights["head.fc1.weight"], weights["head.fc2.weight"]
        if fc6.shape != (4096, 512 * 7 * 7) or fc7.shape != (4096, 4096):
            raise ValueError("the linear layers are not those of VGG-16: head.fc1 should be 4096 x 25088")
        conv6 = fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3]
        return {
            **renamed,
            "extras.0.conv6.weight": conv6,
            "extras.0.conv6.bias": weights["head.fc1.bias"][::4],
            "extras.0.conv7.weight": fc7[::4, ::4, None, None],
            "extras.0.conv7.bias": weights["head.fc2.bias"][::4],
        }

    def from_torchvision(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of torchvision's `ssd300_vgg16` under the names here; it has 4, 6, 6, 6, 4 and 4 boxes.

        Raises:
            ValueError: if a weight has no place here.
        """
        layers = {"backbone.extra.0.7.1": "extras.0.conv6", "backbone.extra.0.7.3": "extras.0.conv7"}
        convolutions = [f"backbone.features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)]
        convolutions += [f"backbone.extra.0.{n}" for n in (1, 3, 5)]
        ours = [f"backbone.stages.{i}.{j}.conv" for i, count in enumerate((2, 2, 3, 3, 3)) for j in range(count)]
        layers |= dict(zip(convolutions, ours, strict=True))
        for i in range(1, 5):
            layers |= {f"backbone.extra.{i}.0": f"extras.{i}.reduce", f"backbone.extra.{i}.2": f"extras.{i}.conv"}
        for i in range(len(self.heads)):
            layers[f"head.classification_head.module_list.{i}"] = f"heads.{i}.classes"
            layers[f"head.regression_head.module_list.{i}"] = f"heads.{i}.boxes"
        renamed = {}
        for name, weight in weights.items():
            layer, _, leaf = name.rpartition(".")
            if name == "backbone.scale_weight":
                renamed["neck.first.scale"] = weight
            elif layer in layers:
                renamed[f"{layers[layer]}.{leaf}"] = weight
            else:
                raise ValueError(f"torchvision's weight {name!r} has no place in this SSD")
        return renamed


def vgg_parts(*, min_size: int = 268) -> dict[str, Any]:
    """Backbone, extras and sizes of SSD300 on VGG-16, in the names of `SSD`; its levels have `VGG_CHANNELS`."""
    stages, seams = vgg_stages(16, batch_norm=False)
    initialise(stages)
    stages[3].pool.ceil_mode = True  # type: ignore[union-attr]
    classifier = sequential(
        pool5=nn.MaxPool2d(3, stride=1, padding=1),
        conv6=nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
        relu6=nn.ReLU(inplace=True),
        conv7=nn.Conv2d(1024, 1024, 1),
        relu7=nn.ReLU(inplace=True),
    )
    extras = [classifier, extra(1024, 256, 512), extra(512, 128, 256)]
    extras += [extra(256, 128, 256, stride=1, padding=0), extra(256, 128, 256, stride=1, padding=0)]
    # Two 3x3 convolutions without padding need a map of 5x5 before them, hence an image of 268 pixels.
    return {
        "backbone": Body(nn.Identity(), stages),
        "taps": [3],
        "extras": extras,
        "seams": seams,
        "min_size": min_size,
    }


VGG_CHANNELS = (512, 1024, 512, 256, 256, 256)
VGG_STEPS = [8, 16, 32, 64, 100, 300]


@checked
def ssd_vgg16(num_classes: PositiveInt, *, boxes: BoxCounts = BOXES, scales: Scales = VOC_SCALES) -> VGGDetector:
    """SSD300 on VGG-16: six levels of 38 to 1 places in an image of 300; Table 4(b)'s 26.5M need 6,6,6,6,4,4 boxes."""
    neck = Levels(6, L2Norm(512))
    return VGGDetector(
        **vgg_parts(), neck=neck, channels=VGG_CHANNELS, num_classes=num_classes, boxes=boxes, scales=scales,
        steps=VGG_STEPS, kernel=3,
    )  # fmt: skip
