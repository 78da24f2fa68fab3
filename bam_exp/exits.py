"""Ending a command with one line for the user and an exit code."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bam_exp.config import one_line, refused
from bam_exp.console import INTERRUPTED, say, say_interrupted
from bam_exp.errors import BamError
from bam_exp.files import reason_of
from bam_exp.machine.interruption import Interrupted
from bam_exp.machine.world import World
from bam_exp.processes import continued_by


@contextmanager
def one_line_errors(program: str, words: Sequence[str] | None = None) -> Iterator[None]:
    """Context manager that turns the errors a user can cause into one line on stderr and an exit code.

    Args:
        words: what was typed after the program's name, to say how it is continued after Ctrl-C; without them, Ctrl-C is left to
            the caller.

    Raises:
        SystemExit: with the error's own exit code (see `errors`), 2 for any other refusal of input, 1 for a file that cannot be
            read or written and where memory does not suffice, 130 after Ctrl-C, and 141 where the reader of the output has gone,
            as for any program in a pipe.
    """
    try:
        yield
        sys.stdout.flush()
    except BamError as error:
        _say(f"{program}: {one_line(error)}")
        raise SystemExit(error.exit_code) from error
    except refused() as error:
        _say(f"{program}: {one_line(error)}")
        raise SystemExit(2) from error
    except BrokenPipeError as error:
        # Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from error
    except OSError as error:
        _say(f"{program}: {f'{error.filename}: ' if error.filename else ''}{reason_of(error)}")
        raise SystemExit(1) from error
    except (MemoryError, RuntimeError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        _say(f"{program}: {reason}")
        raise SystemExit(1) from error
    except (KeyboardInterrupt, Interrupted) as error:
        if words is None:
            raise
        say_interrupted(program, continued_by(program, words))
        raise SystemExit(INTERRUPTED) from error


_NO_MEMORY = re.compile(r"\bout of memory\b|can't allocate memory|not enough memory", re.IGNORECASE)
_ASKED_FOR = re.compile(r"tried to allocate ([\d.]+) (\w+)", re.IGNORECASE)


def out_of_memory(error: BaseException) -> str | None:
    """The line for an error by which Python, PyTorch or CUDA says that memory does not suffice; None for any other error."""
    text = str(error)
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and _NO_MEMORY.search(text)):
        return None
    asked = ""
    if match := _ASKED_FOR.search(text):
        number, unit = match.groups()
        asked = f" of {int(number) / 1e9:.2f} GB" if unit == "bytes" else f" of {number} {unit}"
    device = "of the GPU " if "CUDA" in text or "HIP" in text else ""
    return f"the memory {device}does not suffice for an allocation{asked}; a smaller batch or network needs less"


def _say(line: str) -> None:
    """Print a line once for each machine."""
    try:
        first = World.from_environment().local_rank == 0
    except BamError:  # which is what the line says
        first = True
    if first:
        say(line)
