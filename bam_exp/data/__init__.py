"""Data sets, and one loader that serves them from the device's memory."""

from bam_exp.data.cifar100 import CIFAR100
from bam_exp.data.files import DataError
from bam_exp.data.imagenet import ImageNet
from bam_exp.data.on_device import DeviceLoader
from bam_exp.data.shapes import Shapes

__all__ = ["CIFAR100", "DataError", "DeviceLoader", "ImageNet", "Shapes"]
