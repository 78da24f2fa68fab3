"""Detectors: `conf/backbone/*.yaml` names these factories and holds their keyword arguments.

The fingerprints of stored runs name `bam_exp.detectors.<factory>`, so these names never change.
"""

from bam_exp.detectors.detector import Detections, Detector
from bam_exp.detectors.faster_rcnn import FasterRCNN, faster_rcnn_resnet101
from bam_exp.detectors.ssd import SSD
from bam_exp.detectors.ssd_small import ssd_mobilenet, ssd_resnet20
from bam_exp.detectors.ssd_vgg import ssd_vgg16
from bam_exp.detectors.stairnet import stairnet_mobilenet, stairnet_vgg16

__all__ = [
    "SSD",
    "Detections",
    "Detector",
    "FasterRCNN",
    "faster_rcnn_resnet101",
    "ssd_mobilenet",
    "ssd_resnet20",
    "ssd_vgg16",
    "stairnet_mobilenet",
    "stairnet_vgg16",
]
