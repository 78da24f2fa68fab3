"""Starting the process of a run: by the server that forks it, or as a command where there is only one run to start."""

import atexit
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bam_exp.processes import PARENT, PLACE

ANSWER = struct.Struct("=q")
"""An answer of the server: a whole number of eight bytes."""

_OWN = (PARENT, PLACE)
"""Variables that differ between the runs of a sweep, and that nothing reads while it is imported."""


class Server:
    """The server of this process, which forks one run at a time."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = _common(environment)
        """What libraries may have read when the server imported them."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "bam_exp.sweeps.server", str(theirs.fileno()), str(os.getpid())]
            # NumPy starts the threads of OpenBLAS when it is imported, and a process with threads is not safe to fork.
            variables = {"OPENBLAS_NUM_THREADS": "1", **environment}
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True, env=variables)
        self.connection = ours

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> "Forked":
        """Ask for a run. The first is forked when the server has imported everything."""
        request = {"words": list(words), "environment": dict(environment), "folder": str(Path.cwd())}
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        return Forked(self)

    def answer(self) -> int | None:
        """The next answer of the server, which is waited for; None if the server has gone."""
        try:
            answer = self.connection.recv(ANSWER.size, socket.MSG_WAITALL)
        except ConnectionError:
            return None
        return int(ANSWER.unpack(answer)[0]) if len(answer) == ANSWER.size else None

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Return whether the server is there and can fork a run with this environment."""
        return self.process.poll() is None and self.environment == _common(environment)

    def stop(self) -> None:
        """End the server; it has no run any more."""
        self.connection.close()
        self.process.wait()


class Forked:
    """A run that the server forks, with the methods of `subprocess.Popen` that a sweep needs."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pid: int | None = None
        self.returncode: int | None = None
        self._unsent: list[int] = []
        """Signals that came before the run existed."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code of the run, or minus the number of the signal that killed it.

        If the server has been killed, the run stops as if it had got SIGTERM.

        Raises:
            subprocess.TimeoutExpired: if it has not ended after so many seconds.
        """
        while self.returncode is None:
            if not select.select([self.server.connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(["bam-train"], timeout or 0)
            answer = self.server.answer()
            if answer is None:
                while self._is_there():
                    time.sleep(0.1)
                self.returncode = 128 + signal.SIGTERM if self.pid else 1
            elif self.pid is None:
                self.pid = answer
                while self._unsent:
                    self.send_signal(self._unsent.pop(0))
            else:
                self.returncode = answer
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the run, unless it has ended; if it does not exist yet, `wait` sends it.

        It reads no answer of the server, because it may be called by the handler of a signal that has interrupted `wait`.
        """
        if self.pid is None:
            self._unsent.append(number)
        elif self.returncode is None and self._is_there():
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Tell the run to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the run."""
        self.send_signal(signal.SIGKILL)

    def _is_there(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"


_server: Server | None = None


def start(words: Sequence[str], environment: Mapping[str, str], *, forked: bool) -> "Forked | subprocess.Popen[bytes]":
    """Start `bam-train <words>` as a process in a session of its own.

    Args:
        forked: whether to fork it from the server, which is started for the first such run of this process. Only on Linux is a
            process that has imported PyTorch sure to survive a fork.
    """
    global _server  # noqa: PLW0603 (there is one for each process)
    if forked and sys.platform == "linux":
        if _server is not None and not _server.serves(environment):
            _stop()
        if _server is None:
            _server = Server(environment)
            atexit.register(_stop)
        return _server.start(words, environment)
    # -P: a folder called bam_exp in the current folder is not the package.
    command = [sys.executable, "-P", "-m", "bam_exp", *words]
    return subprocess.Popen(command, start_new_session=True, env=dict(environment))


def _stop() -> None:
    global _server  # noqa: PLW0603
    if _server is not None:
        atexit.unregister(_stop)
        _server.stop()
        _server = None


def _common(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _OWN}
