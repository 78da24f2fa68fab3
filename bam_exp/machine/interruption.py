"""Stopping a run: by a signal, or because the process that started it has ended."""

import os
import signal
import threading

PARENT = "BAM_EXP_PARENT"
"""The environment variable that holds the process id of the sweep or the launcher that started a run."""


def stop_signals() -> list[signal.Signals]:
    """The signals that stop a run; SIGHUP is not among them under nohup. Windows has fewer."""
    names = ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP")
    signals = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [number for number in signals if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN]


class Interrupted(BaseException):
    """The run was told to stop and has saved a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


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
