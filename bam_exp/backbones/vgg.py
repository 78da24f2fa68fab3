"""VGG (Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015)."""

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from bam_exp.backbones.backbone import Backbone, Seam, initialised, sequential
from bam_exp.schema import checked

BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(Backbone):
    """Five stages of 3x3 convolutions with a max-pool after each, and three linear layers; torchvision's VGG.

    The pool of a stage opens the next one, that of the last stage the head. `batch_norm`: whether one follows each
    convolution. `dropout`: the probability after the first two linear layers.
    Seams: `bottleneck` before each of the five max-pools, `block` the end of each convolution, (BatchNorm,) ReLU.
    """

    @checked
    def __init__(
        self,
        num_classes: PositiveInt,
        *,
        depth: Literal[11, 13, 16, 19] = 16,
        batch_norm: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    ) -> None:
        stages, seams = vgg_stages(depth, batch_norm=batch_norm)
        head = sequential(
            pool=nn.MaxPool2d(2),
            resize=nn.AdaptiveAvgPool2d(7),
            flatten=nn.Flatten(),
            fc1=nn.Linear(WIDTHS[-1] * 7 * 7, 4096),
            relu1=nn.ReLU(inplace=True),
            dropout1=nn.Dropout(dropout),
            fc2=nn.Linear(4096, 4096),
            relu2=nn.ReLU(inplace=True),
            dropout2=nn.Dropout(dropout),
            fc3=nn.Linear(4096, num_classes),
        )
        super().__init__(nn.Identity(), stages, head, seams=seams, min_size=32)
        self.batch_norm = batch_norm
        self.depth = depth

    def torchvision_names(self) -> dict[str, str]:
        """See `Backbone`."""
        names = {"classifier.0": "head.fc1", "classifier.3": "head.fc2", "classifier.6": "head.fc3"}
        index = 0
        for i, blocks in enumerate(BLOCKS[self.depth]):
            for j in range(blocks):
                names[f"features.{index}"] = f"stages.{i}.{j}.conv"
                if self.batch_norm:
                    names[f"features.{index + 1}"] = f"stages.{i}.{j}.bn"
                index += 3 if self.batch_norm else 2
            index += 1  # the max-pool
        return names


def vgg_stages(depth: int, *, batch_norm: bool) -> tuple[nn.Sequential, dict[str, list[Seam]]]:
    """The five stages of convolutions with their seams; every stage but the first opens with the pool before it."""
    stages = nn.Sequential()
    seams: dict[str, list[Seam]] = {"bottleneck": [], "block": []}
    channels_in = 3
    for i, (channels, blocks) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True)):
        one_more = partial(initialised, conv_relu, channels, channels, batch_norm=batch_norm)
        stage = nn.Sequential()
        if i > 0:
            stage.add_module("pool", nn.MaxPool2d(2))
        for j in range(blocks):
            stage.add_module(str(j), conv_relu(channels_in, channels, batch_norm=batch_norm))
            seams["block"].append(Seam(f"stages.{i}.{j}", channels, one_more))
            channels_in = channels
        stages.append(stage)
        seams["bottleneck"].append(Seam(f"stages.{i}", channels, one_more))
    return stages, seams


def conv_relu(channels_in: int, channels: int, *, batch_norm: bool) -> nn.Sequential:
    """A 3x3 convolution with bias, a BatchNorm if `batch_norm` is true, and a ReLU."""
    return sequential(
        conv=nn.Conv2d(channels_in, channels, 3, padding=1),
        **({"bn": nn.BatchNorm2d(channels)} if batch_norm else {}),
        relu=nn.ReLU(inplace=True),
    )
