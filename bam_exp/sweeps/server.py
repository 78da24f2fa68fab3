"""The process from which the runs of a sweep are forked, with everything imported that a run needs.

Importing PyTorch and Lightning takes most of the time of a small run. A fork shares these imports and nothing else: each run is a
process with a session, an environment and a working folder of its own, as if it had been started as a command. The server never
asks for a GPU and starts no threads, so that forking it is safe. It serves one launching process, one run at a time, and ends
with it; a run notices by itself that its parent has gone.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
from importlib import import_module
from typing import Any

from bam_exp.console import leave
from bam_exp.processes import PARENT
from bam_exp.sweeps.forked import ANSWER

_PRELOADED = ("bam_exp.commands.train", "bam_exp.training.train", "bam_exp.training.fit", "torch.utils.tensorboard")

_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD}
"""Signals that the server leaves to its runs and its launcher. Those that arrive while a run begins reach it when it is ready."""

_ended: int | None = None
"""The exit code of the command, once it has ended in the process of a run."""


def serve(connection: socket.socket, launcher: int) -> None:
    """Fork a run for each request, a line of JSON with `words`, `environment` and `folder`; answer by two `ANSWER`s.

    The first is its process id, the second, when it has ended, its exit code or minus the number of the signal that killed it.

    It returns in the process of a run, which is then to run the command in `sys.argv`. `launcher` is the process that asks; nothing
    is forked once it has gone.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    for module in _PRELOADED:
        import_module(module)
    gc.freeze()  # collecting garbage would copy the pages that the runs share
    requests = connection.makefile("r", encoding="utf-8")
    while (request := requests.readline()) and os.getppid() == launcher:
        run = os.fork()
        if run == 0:
            requests.close()
            connection.close()
            _become(json.loads(request))
            return
        try:
            connection.sendall(ANSWER.pack(run))
            connection.sendall(ANSWER.pack(_exit_code(run, launcher)))
        except ConnectionError:  # the launcher has gone, and the run will notice that its parent goes, too
            break
    os._exit(0)  # without taking down, object by object, what only the runs have used


def _exit_code(run: int, launcher: int) -> int:
    """Wait for a run, and return its exit code, or minus the number of the signal that killed it."""
    while True:
        ended, status = os.waitpid(run, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if os.getppid() != launcher:
            os._exit(0)
        signal.sigtimedwait({signal.SIGCHLD}, 1)


def _become(request: dict[str, Any]) -> None:
    """Make this fork the process of a run."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[PARENT] = str(os.getppid())
    sys.argv[:] = ["bam-train", *request["words"]]
    gc.unfreeze()
    # Until the command has handlers of its own, Ctrl-C shall print no traceback; the sweep says what has become of the run.
    signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


def _leave() -> None:
    """Leave at once if the command has ended: taking down what the server has imported takes longer than a small run does."""
    if _ended is not None:
        leave(_ended)


if __name__ == "__main__":
    atexit.register(_leave)  # before everything that is imported registers functions, which are called in reverse order
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    try:
        runpy.run_module("bam_exp", run_name="__main__", alter_sys=True)
        _ended = 0
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            _ended = left.code or 0
        raise
