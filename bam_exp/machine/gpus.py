"""GPU leases: a limited number of runs for each GPU, held by file locks that the kernel releases when the process exits."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, product
from pathlib import Path
from random import uniform

from filelock import FileLock, Timeout

from bam_exp.machine.machine import Machine
from bam_exp.machine.world import World, visible_gpus


@contextmanager
def gpu_lease(machine: Machine) -> Iterator[list[str]]:
    """Hold a slot of as many GPUs (of `gpus` x `runs_per_gpu`) as a run uses, and wait until they are free.

    Yields the GPUs as CUDA_VISIBLE_DEVICES names them, and shows this process the first. The list is empty on a CPU, and for
    ranks that torchrun or srun started, whose GPUs come from there.
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
                    lock = FileLock(folder / f"gpu{gpu}-{slot}.lock")
                    try:
                        lock.acquire(timeout=0)
                    except Timeout:
                        continue
                    held.callback(lock.release)
                    leased.append(gpu)
            if len(leased) == machine.processes:
                os.environ["CUDA_VISIBLE_DEVICES"] = leased[0]
                yield leased
                return
        # Too few are free: all are released, so that no two runs wait for each other.
        if attempt == 0:
            print("waiting for a free GPU", file=sys.stderr, flush=True)
        time.sleep(uniform(0.5, 1.5))
