"""Memory of a process that trains on a CPU."""

import ctypes
import os


def keep_memory() -> None:
    """Make malloc keep the memory that this process frees, for its next step. It has no effect without glibc.

    By default glibc hands every large tensor back to the kernel, which clears each page again when the next one is made:
    about a twentieth of a step of ResNet-50 on a CPU. It has no effect if one of the variables in `_MALLOC` is set.
    """
    if any(name in os.environ for name in _MALLOC):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)


_MALLOC = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")
