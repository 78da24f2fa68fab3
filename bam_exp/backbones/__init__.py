"""The paper's backbones: `conf/backbone/*.yaml` names these classes and holds their keyword arguments.

The fingerprints of stored runs name `bam_exp.backbones.<class>`, so these names never change.
"""

from bam_exp.backbones.backbone import Backbone, Residual, Seam, initialise
from bam_exp.backbones.densenet import DenseNet
from bam_exp.backbones.mobilenet import MobileNet
from bam_exp.backbones.preresnet import PreResNet
from bam_exp.backbones.resnet import ResNet
from bam_exp.backbones.resnext import ResNeXt
from bam_exp.backbones.squeezenet import SqueezeNet
from bam_exp.backbones.vgg import VGG
from bam_exp.backbones.wrn import WRN

__all__ = [
    "VGG",
    "WRN",
    "Backbone",
    "DenseNet",
    "MobileNet",
    "PreResNet",
    "ResNeXt",
    "ResNet",
    "Residual",
    "Seam",
    "SqueezeNet",
    "initialise",
]
