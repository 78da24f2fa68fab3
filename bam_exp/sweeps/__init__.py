"""Sweeps: many runs, each in a process of its own."""

from bam_exp.sweeps.sweep import Sweep

__all__ = ["Sweep"]
