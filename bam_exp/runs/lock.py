"""The lock of a run: one process trains it at a time. The kernel releases the lock when the process exits."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bam_exp.errors import Busy, ConfigError
from bam_exp.files import clear_parts, read_json, reason_of, write_atomically
from bam_exp.runs.folder import OWNER
from bam_exp.runs.run import Run

LOCK = ".lock"
_PATIENCE_S = 1.0
"""Seconds to try for a lock, because `is_running` holds it for a moment."""


@contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """Hold the run's lock, and delete the parts of files that a killed process has left in its folder.

    Raises:
        Busy: naming the process that holds it.
        ConfigError: if the folder cannot be written.
    """
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run.folder / LOCK)
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout as error:
        for _ in range(20):  # it may not have written its name yet
            if owner := read_owner(run.folder):
                break
            time.sleep(0.1)
        raise Busy(f"{run.name}: already running ({owner or 'another process'})") from error
    except OSError as error:
        raise ConfigError(f"output_dir: cannot write to {run.folder} ({reason_of(error)})") from error
    clear_parts(run.folder)
    try:
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        write_atomically(run.folder / OWNER, json.dumps({"process": owner}) + "\n")
        yield
    finally:
        (run.folder / OWNER).unlink(missing_ok=True)
        lock.release()


def read_owner(folder: Path) -> str:
    """The owner recorded in a run's folder as `process <pid> on <host>`, or ''. The record outlives a killed process."""
    owner = read_json(folder / OWNER).get("process", "")
    return owner if isinstance(owner, str) else ""


def is_running(folder: Path) -> bool | None:
    """Return whether a process holds the lock of a run's folder; None if its owner is on another machine, whose locks may not show.

    The lock decides, not the number of the owner's process, which the system may have given to another one since.
    """
    if not (owner := read_owner(folder)):
        return False
    if not owner.endswith(f" on {socket.gethostname()}"):
        return None
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return None


def running_elsewhere(run: Run) -> bool:
    """Return whether another process of this machine is training the run."""
    return is_running(run.folder) is True
