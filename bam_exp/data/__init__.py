"""Data sets: for classification, CIFAR-100, ImageNet-1K and any folder of photos like it, and Shapes, which the package
draws itself; for detection, COCO, VOC and data in their form, and Scenes, which the package draws itself.

Each follows the protocol `DataSet` and serves its batches through a `Batches`. Configs name the classes here in
`_target_` ("bam_exp.data.CIFAR100"), and the fingerprints of stored runs contain these names: they must never change.
"""

from bam_exp.data.batches import Batches
from bam_exp.data.cifar100 import CIFAR100
from bam_exp.data.coco import COCO
from bam_exp.data.dataset import DataSet, Split
from bam_exp.data.imagenet import ImageNet
from bam_exp.data.on_device import DeviceLoader
from bam_exp.data.photos.loader import PhotoLoader
from bam_exp.data.scenes import Scenes
from bam_exp.data.shapes import Shapes
from bam_exp.data.voc import VOC
from bam_exp.errors import DataError

__all__ = [
    "CIFAR100",
    "COCO",
    "VOC",
    "Batches",
    "DataError",
    "DataSet",
    "DeviceLoader",
    "ImageNet",
    "PhotoLoader",
    "Scenes",
    "Shapes",
    "Split",
]
