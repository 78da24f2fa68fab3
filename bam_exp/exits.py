"""How a command ends: one line for the user and an exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bam_exp.config import REFUSED, one_line
from bam_exp.errors import BamError
from bam_exp.machine.world import World


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Context manager that turns the errors a user can cause into one line on stderr and an exit code.

    Raises:
        SystemExit: with the error's own exit code (see `errors`), 2 for any other refusal of input, 130 after Ctrl-C.
    """
    try:
        yield
    except BamError as error:
        _say(f"{program}: {one_line(error)}")
        raise SystemExit(error.exit_code) from error
    except REFUSED as error:
        _say(f"{program}: {one_line(error)}")
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        _say(f"{program}: interrupted")
        raise SystemExit(130) from error


def _say(line: str) -> None:
    """Print a line once for each machine."""
    if World.from_environment().local_rank == 0:
        print(line, file=sys.stderr, flush=True)
