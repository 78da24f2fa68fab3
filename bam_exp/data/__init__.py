"""Data sets, each with a `loader` of its batches: from the device's memory, or from photos on disk."""

from bam_exp.data.batches import Batches
from bam_exp.data.cifar100 import CIFAR100
from bam_exp.data.imagenet import ImageNet
from bam_exp.data.on_device import DeviceLoader
from bam_exp.data.photos.loader import PhotoLoader
from bam_exp.data.shapes import Shapes
from bam_exp.errors import DataError

__all__ = ["CIFAR100", "Batches", "DataError", "DeviceLoader", "ImageNet", "PhotoLoader", "Shapes"]
