"""Weights in files: ours (safetensors), torchvision's and the authors' checkpoints."""

from bam_exp.weights.file import load_weights, put_weights, read_checkpoint, renamed, save_weights
from bam_exp.weights.released import from_released

__all__ = ["from_released", "load_weights", "put_weights", "read_checkpoint", "renamed", "save_weights"]
