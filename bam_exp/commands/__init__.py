"""The console commands, one module each."""

import os


def _prepare_environment() -> None:
    """Set the environment variables that must be set before torch is imported; those that the user has set stay."""
    # OpenMP threads that wait should sleep soon. Where another process needs one of the cores, threads that spin for long made
    # a step up to 16 times slower (2 threads on 2 cores); threads that never spin cost a sixth of a step.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Asking whether there is a GPU must not initialise CUDA, which would then ignore the GPU that a run leases later.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


_prepare_environment()  # before any module of this package imports torch
