"""Lines for the user, which must never end a run: a log whose disk is full or whose reader has gone is ignored."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import NoReturn, TextIO

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 + SIGINT."""


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line on stderr, or on another stream; without effect if it cannot be written.

    The line and its end are written at once (`print` writes them one after the other), so that nothing comes between them: neither
    the line of another process nor that of a signal handler.
    """
    stream = stream or sys.stderr
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        stream.write(f"{line}\n")
        stream.flush()


def open_missing_streams() -> None:
    """Give a process that was started without a standard stream (`>&-`) the null device in its place, and have all take any text.

    Without it, the first file that is opened would get the number of the stream, and with it what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":  # a terminal in ASCII has no ±
            stream.reconfigure(errors="replace")


def leave(code: int) -> NoReturn:
    """End this process without taking down, object by object, what it has imported."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader has gone, or it is closed
            stream.flush()
    os._exit(code)


def say_interrupted(program: str, command: str | None) -> None:
    """Say that Ctrl-C has ended a command, and which command continues; nothing if that is None: another process says it."""
    if command is not None:
        say(_interrupted(program, command))


def _interrupted(program: str, command: str) -> str:
    return f"{program}: interrupted; continue with: {command}"


@contextmanager
def ending_at_once(program: str, command: str | None) -> Iterator[None]:
    """Context manager in which Ctrl-C ends the process in one line, without an exception.

    It is for imports and for reading configs, where nothing has to be cleaned up, and where libraries catch a KeyboardInterrupt
    or turn it into an error of their own.
    """

    def end(_number: int, _frame: object) -> None:
        if command is not None:
            with suppress(OSError):  # `print` refuses to work in a handler that has interrupted another `print`
                os.write(2, f"{_interrupted(program, command)}\n".encode())
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
