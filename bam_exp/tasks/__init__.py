"""What a network is trained to do; a recipe is the keyword arguments of a task."""

from bam_exp.tasks.classification import Classification

__all__ = ["Classification"]
