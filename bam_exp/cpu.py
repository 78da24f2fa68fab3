"""The processor: its name, and the number of cores that a process may use."""

import os
import platform
from pathlib import Path


def available_cores() -> int:
    """Number of CPU cores that this process may run on; all cores where the system has no affinities (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_per_process(processes: int = 1) -> int:
    """Number of CPU cores for each of `processes` processes of a run, at least 1.

    torchrun's LOCAL_WORLD_SIZE takes precedence over `processes`, which may be spread over several machines. Where SLURM
    has given cores to this task (SLURM_CPUS_PER_TASK), the other processes have their own.
    """
    cores = available_cores()
    if "SLURM_CPUS_PER_TASK" in os.environ:
        return cores
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def cpu_name() -> str:
    """The name of the processor, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
