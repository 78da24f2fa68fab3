"""One job of a sweep: its run in a process of its own, so that it fails alone."""

import atexit
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig

from bam_exp.config import one_line, search_path
from bam_exp.console import leave
from bam_exp.cpu import cores_per_process
from bam_exp.machine import Machine
from bam_exp.machine.compiling import WORKERS
from bam_exp.machine.gpus import visible_gpus
from bam_exp.processes import BESIDE_OTHERS, PARENT, SWEEP
from bam_exp.runs.folder import clear_failure, is_done, record_failure
from bam_exp.runs.lock import running_elsewhere
from bam_exp.runs.run import Run
from bam_exp.sweeps.forked import Forked, start

SLURM_ENDS_S = 600
"""Seconds that a job which SLURM told to stop waits for SLURM to end it (SLURM's GraceTime and KillWait)."""

_sweep: int | None = None
"""The process of the sweep, if this process is one of the workers that it has started."""

_busy = threading.Lock()
"""Held while a run is trained."""


def train_in_child(run: Run, machine: Machine) -> None:
    """Train a run in a child process and wait for it; whatever becomes of it is recorded in its folder.

    The child is given everything that was chosen, word by word, and not what was typed: defaults of the user's own configs,
    interpolations and Hydra's flags have already had their effect.

    Raises:
        SystemExit: 128 + the signal, if this process was told to stop.
    """
    _watch_sweep()
    with _busy:
        _train_in_child(run, machine)


def _train_in_child(run: Run, machine: Machine) -> None:
    if is_done(run) or running_elsewhere(run):
        return
    clear_failure(run)
    try:
        machine.check_device()
    except ValueError as error:
        record_failure(run, one_line(error))
        return
    environment = {WORKERS: str(_workers(machine)), **os.environ, PARENT: str(os.getpid())}
    if _sweep is not None:
        environment[BESIDE_OTHERS] = "1"
    # In a session of its own: Ctrl-C in a terminal reaches only the sweep, which passes it on once. A job of SLURM is one run.
    several = "SUBMITIT_EXECUTOR" not in os.environ
    child = start([*search_path(), *run.full_overrides], environment, forked=several)
    limit, reason = machine.time_limit_minutes, None
    try:
        with _signals_passed_on(child) as received:
            code = _wait(child, limit)
    except subprocess.TimeoutExpired:
        child.kill()
        code, reason = child.wait(), f"ran longer than trainer.time_limit_minutes={limit}"
    except BaseException as error:  # submitit's handler of SIGUSR2: the run saves its checkpoint and ends
        child.terminate()
        child.wait()
        if not isinstance(error, Exception):  # submitit's way of requeueing the job
            raise
        code, reason = 0, one_line(error)
    if received:
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and code == 128 + signal.SIGTERM:
            # Pre-emption: SLURM requeues a job only if it is still there when SLURM ends it. (A sweep that was started by hand
            # inside an allocation ends at once.)
            time.sleep(SLURM_ENDS_S)
        raise SystemExit(128 + received[0])
    if reason := reason or _reason_of(code):
        record_failure(run, reason)


def _workers(machine: Machine) -> int:
    """The number of processes in which a run compiles: the cores are divided among the runs that joblib trains at a time."""
    cores = cores_per_process()
    runs: int = HydraConfig.get().launcher.get("n_jobs", 1)
    runs = cores if runs < 0 else runs
    if machine.uses_gpu:
        runs = min(runs, len(machine.gpus or visible_gpus()) * machine.runs_per_gpu // machine.processes)
    return max(1, cores // max(1, runs))


def _watch_sweep() -> None:
    """Have this process exit if it is a worker whose sweep has been killed, instead of going on with the jobs that it was given.

    A thread looks, because the worker may also be waiting for somebody to read the result of its last job.
    """
    global _sweep  # noqa: PLW0603
    if _sweep is None and os.environ.get(SWEEP) == str(os.getppid()):
        _sweep = os.getppid()
        atexit.register(leave, 0)  # after Ctrl-C, Triton would print what has leaked
        threading.Thread(target=_exit_with_sweep, daemon=True).start()
    if _has_lost_its_sweep():
        os._exit(1)


def _exit_with_sweep() -> None:
    while not _has_lost_its_sweep():
        time.sleep(1)
    with _busy:  # its run is being stopped
        os._exit(1)


def _has_lost_its_sweep() -> bool:
    return _sweep is not None and os.getppid() != _sweep


def _reason_of(code: int) -> str | None:
    """The reason that an exit code gives, if the run did not record one itself."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGHUP):
        return f"stopped by {signal.Signals(code - 128).name}; its checkpoint is saved"
    return None


def _wait(child: "Forked | subprocess.Popen[bytes]", limit: float | None) -> int:
    """The exit code of the child. If the parent sweep has exited (joblib workers outlive it), terminate the child.

    Raises:
        subprocess.TimeoutExpired: after `limit` minutes.
    """
    end = time.monotonic() + (math.inf if limit is None else limit * 60)
    while True:
        try:
            return child.wait(timeout=min(1, max(0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                raise
            if _has_lost_its_sweep():
                child.terminate()


@contextmanager
def _signals_passed_on(child: "Forked | subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass SIGINT, SIGTERM and SIGHUP on to the child; yields the list of those that arrived."""
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        child.send_signal(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # This also replaces submitit's handler, which ignores SIGTERM; that of SIGUSR2 stays.
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {
            number: signal.signal(number, pass_on)
            for number in signals
            if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
        }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
