"""Lines for the user, which must never end a run: a log whose disk is full or whose reader has gone is ignored."""

import os
import sys
from contextlib import suppress
from typing import TextIO

LABEL = "BAM_EXP_LABEL"
"""The environment variable that holds a run's place in its sweep, as `3/24`."""


def label() -> str:
    """`[3/24] ` for a run of a sweep, else an empty string: the lines of runs that train side by side are told apart by it."""
    place = os.environ.get(LABEL, "")
    return f"[{place}] " if place else ""


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line on stderr, or on another stream; without effect if it cannot be written."""
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(line, file=stream or sys.stderr, flush=True)
