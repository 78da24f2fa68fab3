"""Weights in files: our own safetensors files, and checkpoints of torchvision and of the BAM authors."""

from bam_exp.weights.checkpoint import read_checkpoint, renamed
from bam_exp.weights.file import check_weights, load_weights, put_weights, read_weights, save_weights
from bam_exp.weights.metadata import Metadata, Preprocessing, read_metadata, weights_file
from bam_exp.weights.network import load_network
from bam_exp.weights.photos import read_photos, upright_rgb
from bam_exp.weights.released import from_released

__all__ = [
    "Metadata",
    "Preprocessing",
    "check_weights",
    "from_released",
    "load_network",
    "load_weights",
    "put_weights",
    "read_checkpoint",
    "read_metadata",
    "read_photos",
    "read_weights",
    "renamed",
    "save_weights",
    "upright_rgb",
    "weights_file",
]
