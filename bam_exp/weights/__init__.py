"""Weights in files: our own safetensors files, and checkpoints of torchvision and of the BAM authors."""

from bam_exp.weights.checkpoint import read_checkpoint, renamed
from bam_exp.weights.file import load_weights, put_weights, save_weights
from bam_exp.weights.released import from_released

__all__ = ["from_released", "load_weights", "put_weights", "read_checkpoint", "renamed", "save_weights"]
