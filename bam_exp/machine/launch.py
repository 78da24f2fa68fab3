"""Starting the ranks of a run on this machine by torchrun's agent."""

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bam_exp.errors import Busy, ConfigError, RankFailed
from bam_exp.machine.interruption import Interruption, stop_signals
from bam_exp.processes import LAUNCHED, PARENT

STOP_S = 300
"""Seconds that ranks have to save a checkpoint after they were told to stop; 30 where PyTorch cannot be told (2.11)."""


def launch(count: int, words: Sequence[str], command: str | None) -> None:
    """Run `bam-train <words>` in `count` ranks on this machine, and wait for them; they show `command` if they are stopped.

    Signals that stop a run are passed on. If a rank fails, the others are told to stop and are killed 30 seconds later.

    Raises:
        RankFailed: naming the rank that failed first, with its reason and, as `trace`, its traceback.
        Busy, ConfigError: as the ranks raised it.
        SystemExit: 128 + the signal, if the run was told to stop.
    """
    timeout: dict[str, Any] = {"shutdown_timeout": STOP_S} if hasattr(LaunchConfig, "shutdown_timeout") else {}
    with tempfile.TemporaryDirectory(prefix="bam_exp-ranks-") as folder, _quiet(), _watching_parent():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            run_id=str(uuid.uuid4()),
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),  # for the errors of the ranks; their output is not redirected
            signals_to_handle=",".join(number.name for number in stop_signals()),
            **timeout,
        )
        variables = {PARENT: str(os.getpid()), LAUNCHED: command or ""}
        try:
            with mock.patch.dict(os.environ, variables):
                elastic_launch(config, sys.executable)("-P", "-m", "bam_exp", *words)
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from stop
        except ChildFailedError as error:
            raise _first_failure(error, count) from error


def _first_failure(error: ChildFailedError, count: int) -> BaseException:
    """The failure that caused the others, as the exception to end with."""
    rank, failure = min(error.failures.items(), key=lambda item: (_is_consequence(item[1]), item[1].timestamp, item[0]))
    if failure.exitcode in [128 + number for number in stop_signals()]:
        return SystemExit(failure.exitcode)
    text = _message(failure)
    kind, _, message = text.partition(": ")
    if kind in ("Busy", "ConfigError"):
        return {"Busy": Busy, "ConfigError": ConfigError}[kind](message)
    # A thread of gloo may abort a rank that is exiting after it has recorded its error.
    if failure.exitcode < 0 and not text:
        name = signal.Signals(-failure.exitcode).name
        memory = " (out of memory?)" if name == "SIGKILL" else ""
        return RankFailed(f"rank {rank} of {count} was killed by {name}{memory}")
    reason = f": {text}" if text else f" ended with exit code {failure.exitcode}"
    failed = RankFailed(f"rank {rank} of {count}{reason}")
    failed.trace = _details(failure).get("extraInfo", {}).get("py_callstack", "")
    return failed


def _is_consequence(failure: ProcessFailure) -> bool:
    """Whether another rank's failure may be the reason: a lost connection, or the agent's signal before a rank handles it."""
    lost = ("RuntimeError", "DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
    return failure.exitcode == -signal.SIGTERM or _message(failure).partition(":")[0] in lost


def _message(failure: ProcessFailure) -> str:
    """The error that a rank has recorded, as `<type>: <message>` in one line, or ''."""
    return " ".join(str(_details(failure).get("message", "")).split())


def _details(failure: ProcessFailure) -> dict[str, Any]:
    message = failure.error_file_data.get("message")
    return message if isinstance(message, dict) else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the agent, which logs many lines about what the caller says in one; restore the signal handlers afterwards."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in stop_signals()} if main else {}
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _watching_parent() -> Iterator[None]:
    """Stop this process by SIGTERM, and with it the ranks, if the sweep that started it has ended."""
    interruption, over = Interruption(), threading.Event()

    def watch() -> None:
        while not over.wait(1):
            if interruption.requested:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    if interruption.parent is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
