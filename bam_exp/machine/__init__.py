"""The machine that a run computes on: device, processes, threads, memory, interruption."""

from bam_exp.machine.machine import Machine, keep_memory

__all__ = ["Machine", "keep_memory"]
