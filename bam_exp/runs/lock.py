"""The lock of a run: one process trains it at a time. The kernel releases the lock when the process exits."""

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bam_exp.errors import Busy, ConfigError
from bam_exp.files import clear_parts, read_json, write_atomically
from bam_exp.runs.folder import OWNER
from bam_exp.runs.run import Run

LOCK = ".lock"


@contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """Hold the run's lock, and delete the parts of files that a killed process has left in its folder.

    Raises:
        Busy: naming the process that holds it.
        ConfigError: if the folder cannot be written.
    """
    path = run.folder / LOCK
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout as error:
        for _ in range(20):  # it may not have written its name yet
            if is_alive(owner := read_owner(run.folder)) is not False:
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
    """The owner recorded in a run's folder as `process <pid> on <host>`, or ''. The record outlives a killed process."""
    return str(read_json(folder / OWNER).get("process", ""))


def is_alive(owner: str) -> bool | None:
    """Whether the process of an owner exists; None if it is on another machine."""
    match = re.fullmatch(r"process (\d+) on (.*)", owner)
    if match is None:
        return False
    if match.group(2) != socket.gethostname():
        return None
    try:
        os.kill(int(match.group(1)), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
