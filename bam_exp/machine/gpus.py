"""The GPUs that a process may use, and leases on them: a limited number of runs for each GPU.

This file alone writes CUDA_VISIBLE_DEVICES. The driver reads it once, when a process first asks it for anything, so nothing
here asks the driver in this process. Leases are file locks, which the kernel releases when the process exits.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count, product
from pathlib import Path
from random import uniform
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from bam_exp.machine.world import World

if TYPE_CHECKING:
    from bam_exp.machine.machine import Machine

VISIBLE = "CUDA_VISIBLE_DEVICES"

_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""The device files of the drivers of GPUs: NVIDIA's, that of WSL, and AMD's."""


def may_have_gpus() -> bool:
    """Return whether `visible_gpus` could be anything but empty: a quick answer, for which PyTorch is not imported."""
    there = any(Path(device).exists() for device in _DEVICES)
    return there or bool(os.environ.get(VISIBLE)) or shutil.which("nvidia-smi") is not None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: by index, UUID or MIG name."""
    import torch

    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return []
    uuids = _uuids()
    if VISIBLE not in os.environ:
        return [str(index) for index in range(len(uuids) or _count())]
    gpus: list[str] = []
    for gpu in os.environ[VISIBLE].split(","):
        name = gpu.strip()
        if not (name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and not 0 < len(uuids) <= int(name))):
            break  # CUDA ignores this entry and all after it, as in "0,-1,1"
        gpus.append(name)
    return list(dict.fromkeys(gpus))


@cache
def _uuids() -> tuple[str, ...]:
    """The UUIDs of the GPUs of this machine by index; empty where nvidia-smi is missing."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line for line in answer.split() if line.startswith("GPU-"))


@cache
def _count() -> int:
    """The number of GPUs where nvidia-smi is missing, as in some containers; another process asks the driver."""
    if not any(Path(device).exists() for device in _DEVICES):
        return 0
    program = "import torch; print(torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout
    return int(answer.strip() or 0)


@contextmanager
def gpu_lease(machine: "Machine") -> Iterator[list[str]]:
    """Hold a slot of as many GPUs (of `gpus` x `runs_per_gpu`) as a run uses, and wait until they are free.

    Yields the GPUs, which CUDA_VISIBLE_DEVICES names inside the context, for this process and for those that it starts. The
    list is empty on a CPU, and for ranks, whose GPUs are those that their launcher has given them.
    """
    if not machine.uses_gpu or World.from_environment().size > 1:
        yield []
        return
    visible = visible_gpus()
    chosen = [visible[index] for index in machine.gpus] if machine.gpus else visible
    # SLURM gives each job its own GPUs, usually numbered from 0 in each: leases only keep the runs of one job apart.
    job = os.environ.get("SLURM_JOB_ID", "")
    folder = Path(tempfile.gettempdir()) / f"bam_exp-gpus-{os.getuid()}{job and '-'}{job}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for attempt in count():
        with ExitStack() as held:
            leased: list[str] = []
            for slot, gpu in product(range(machine.runs_per_gpu), chosen):
                if len(leased) < machine.processes and gpu not in leased:
                    lock = FileLock(folder / f"gpu{_lock_name(gpu)}-{slot}.lock")
                    try:
                        lock.acquire(timeout=0)
                    except Timeout:
                        continue
                    held.callback(lock.release)
                    leased.append(gpu)
            if len(leased) == machine.processes:
                held.enter_context(_shown(leased))
                yield leased
                return
        # Too few are free: all are released, so that no two runs wait for each other.
        if attempt == 0:
            print("waiting for a free GPU", file=sys.stderr, flush=True)
        time.sleep(uniform(0.5, 1.5))


def show_gpu_of_rank(world: World) -> None:
    """Show this process only the GPU of its rank.

    A launcher shows each rank either all GPUs of the machine, or its own alone (`srun --gpus-per-task`). A rank that sees one
    GPU works for both, and for MIG instances, of which a process can use only one.
    """
    visible = visible_gpus()
    os.environ[VISIBLE] = visible[0 if len(visible) == 1 else world.local_rank]


@contextmanager
def _shown(gpus: list[str]) -> Iterator[None]:
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(gpus)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


def _lock_name(gpu: str) -> str:
    """The name by which the locks know a GPU: its UUID, which an index or the beginning of a UUID is translated to."""
    uuids = _uuids()
    if gpu.isdecimal():
        return uuids[int(gpu)] if int(gpu) < len(uuids) else gpu
    return next((uuid for uuid in uuids if uuid.startswith(gpu)), gpu)


def gpu_problem() -> str | None:
    """The reason why the GPU that this process sees cannot compute, in one line, or None. This asks the driver."""
    try:
        import torch

        torch.ones(2, device="cuda").sum().item()  # needs a driver, memory and kernels for this card
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    return None
