"""Lines for the user, which must never end a run: a log whose disk is full or whose reader has gone is ignored."""

import sys
from contextlib import suppress
from typing import TextIO


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line on stderr, or on another stream; without effect if it cannot be written."""
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(line, file=stream or sys.stderr, flush=True)
