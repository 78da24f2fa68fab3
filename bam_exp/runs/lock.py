"""Who has what: the lock of a run, a slot of a GPU; the kernel drops both with the process."""

import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, product
from pathlib import Path
from random import uniform

from filelock import FileLock, Timeout

from bam_exp.config.choices import ConfigError
from bam_exp.errors import Busy
from bam_exp.files import clear_parts, read_json, write_atomically
from bam_exp.machine.machine import Machine
from bam_exp.machine.ranks import World, visible_gpus
from bam_exp.runs.run import OWNER, Run

LOCK = ".lock"


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the run's lock, which the kernel drops with the process.

    Raises:
        Busy: naming the process that has it.
        ConfigError: if the folder cannot be written.
    """
    path = run.folder / LOCK
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout as error:
        for _ in range(20):  # it may not have said yet who it is
            if alive(owner := read_owner(run.folder)) is not False:
                break
            time.sleep(0.1)
        raise Busy(f"{run.name}: already running ({owner or 'another process'})") from error
    except OSError as error:
        raise ConfigError(f"output_dir: cannot write to {run.folder} ({error.strerror})") from error
    clear_parts(run.folder)
    try:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        write_atomically(run.folder / OWNER, json.dumps({"process": owner}) + "\n")
        yield
    finally:
        (run.folder / OWNER).unlink(missing_ok=True)
        lock.release()


def read_owner(folder: Path) -> str:
    """`process <number> on <machine>`: who trains, or has been killed while training, the run of this folder; else empty."""
    return str(read_json(folder / OWNER).get("process", ""))


def alive(owner: str) -> bool | None:
    """Whether that process still is; None if it is on another machine."""
    found = re.fullmatch(r"process (\d+) on (.*)", owner)
    if found is None:
        return False
    if found.group(2) != socket.gethostname():
        return None
    try:
        os.kill(int(found.group(1)), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def leased(here: Machine) -> Iterator[list[str]]:
    """Hold a slot of as many GPUs (`gpus` x `runs_per_gpu`) as a run takes, waiting for them; nothing on a CPU.

    Yields them as CUDA_VISIBLE_DEVICES names them, which shows this process the first. What torchrun or srun started has
    its GPUs from there, and leases none.
    """
    if not here.uses_gpu or World.outside().size > 1:
        yield []
        return
    visible = visible_gpus()
    chosen = [visible[index] for index in here.gpus] if here.gpus else visible
    # SLURM gives each job GPUs of its own, most often counted from 0 in each: leases keep apart the runs of one job.
    job = os.environ.get("SLURM_JOB_ID", "")
    folder = Path(tempfile.gettempdir()) / f"bam_exp-gpus-{os.getuid()}{job and '-'}{job}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for attempt in count():
        with ExitStack() as held:
            found: list[str] = []
            for slot, gpu in product(range(here.runs_per_gpu), chosen):
                if len(found) < here.processes and gpu not in found:
                    lock = FileLock(folder / f"gpu{gpu}-{slot}.lock")
                    try:
                        lock.acquire(timeout=0)
                    except Timeout:
                        continue
                    held.callback(lock.release)
                    found.append(gpu)
            if len(found) == here.processes:
                os.environ["CUDA_VISIBLE_DEVICES"] = found[0]
                yield found
                return
        # Too few: all are let go, so that no two runs wait for each other's.
        if attempt == 0:
            print("waiting for a free GPU", file=sys.stderr, flush=True)
        time.sleep(uniform(0.5, 1.5))
