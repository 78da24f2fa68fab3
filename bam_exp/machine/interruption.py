"""How a run is told to stop: signals, or the death of the sweep that started it."""

import os
import signal
import threading

PARENT = "BAM_EXP_PARENT"
"""Environment variable with the process id of the sweep that started a run."""


class Interrupted(BaseException):
    """The run was told to stop and has saved where it stands."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Interruption:
    """SIGTERM, SIGINT, SLURM's USR2, or the death of the sweep that started this run, as a flag looked at between batches."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.parent = os.environ.get(PARENT)

    def listen(self) -> None:
        """Let the signals set the flag; a second Ctrl-C acts at once."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self.number == number == signal.SIGINT:
            raise Interrupted(number)
        self.number = number

    @property
    def came(self) -> bool:
        """Whether the run was told to stop."""
        if self.number is None and self.parent is not None and str(os.getppid()) != self.parent:
            self.number = signal.SIGTERM
        return self.number is not None
