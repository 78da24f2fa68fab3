"""The machine that a run computes on: device, processes, threads, memory, interruption.

Configs name `bam_exp.machine.Machine`, so this name never changes.
"""

from bam_exp.machine.machine import Machine

__all__ = ["Machine"]
