"""The entry points of the console commands: Ctrl-C ends a command in one line, also while it is still importing."""

import sys
from collections.abc import Callable
from importlib import import_module

from bam_exp.console import INTERRUPTED, ending_at_once, say_interrupted
from bam_exp.processes import continued_by


def _run(command: str) -> None:
    program, typed = f"bam-{command}", continued_by(f"bam-{command}", sys.argv[1:])
    try:
        with ending_at_once(program, typed):
            main = _import(command)
        main()
    except KeyboardInterrupt:
        say_interrupted(program, typed)
        raise SystemExit(INTERRUPTED) from None


def _import(command: str) -> Callable[[], None]:
    """The command's `main`; without what it needs, the extra to install is named."""
    try:
        main: Callable[[], None] = import_module(f"bam_exp.commands.{command}").main
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "bam_exp":
            raise
        print(f"bam-{command}: {error.name} is not installed; pip install 'bam_exp[train]' brings it", file=sys.stderr)
        raise SystemExit(2) from error
    return main


def train() -> None:
    """`bam-train`."""
    _run("train")


def tables() -> None:
    """`bam-tables`."""
    _run("tables")


def bench() -> None:
    """`bam-bench`."""
    _run("bench")


def data() -> None:
    """`bam-data`."""
    _run("data")


def weights() -> None:
    """`bam-weights`."""
    _run("weights")


def maps() -> None:
    """`bam-maps`."""
    _run("maps")
