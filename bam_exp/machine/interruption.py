"""Stopping a run: by a signal, or because the process that started it has ended."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bam_exp.processes import PARENT


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a run; SIGHUP is not among them under nohup. Windows has fewer."""
    names = ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP")
    signals = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [number for number in signals if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN]


class Interrupted(BaseException):
    """Training or testing was told to stop; a run that trains has saved a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """Context manager in which Ctrl-C raises `Interrupted`: on a KeyboardInterrupt, Lightning ends the process with exit code 1."""

    def stop(number: int, _frame: object) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Interruption:
    """Turns the signals that stop a run, and the exit of the parent, into a flag that training checks between batches."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.parent = os.environ.get(PARENT)

    def listen(self) -> None:
        """Install the signal handlers. A second SIGINT raises `Interrupted` at once."""
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self.number == number == signal.SIGINT:
            raise Interrupted(number)
        self.number = number

    @property
    def requested(self) -> bool:
        """Whether the run was told to stop."""
        if self.number is None and self.parent is not None and str(os.getppid()) != self.parent:
            self.number = signal.SIGTERM
        return self.number is not None
