"""The parser of command lines, and types of arguments."""

import argparse
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bam_exp import __version__
from bam_exp.files import reason_of


class Parser(argparse.ArgumentParser):
    """argparse's parser, with `--version`; a wrong argument ends in one line, without the usage before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if " " not in self.prog:  # sub-commands have "command sub-command"
            self.add_argument("--version", action="version", version=f"{self.prog} {__version__}")

    def error(self, message: str) -> NoReturn:
        """Print the message and end with exit code 2."""
        self.exit(2, f"{self.prog}: {message}  (--help shows the usage)\n")


def whole_number(largest: int = 2**31 - 1) -> Callable[[str], int]:
    """A function that converts an argument to a whole number from 1 to the largest."""

    def convert(argument: str) -> int:
        try:
            number = int(argument)
        except ValueError:
            number = 0
        if not 1 <= number <= largest:
            raise argparse.ArgumentTypeError(f"{argument}: should be a whole number from 1 to {largest}")
        return number

    return convert


def path(argument: str) -> Path:
    """Convert an argument to a path, replacing a leading `~` or `~user` even where the shell has not done so."""
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{argument}: there is no such home folder") from error


def folder(argument: str) -> Path:
    """Convert an argument to the path of a folder, which need not exist."""
    place = path(argument)
    try:
        if argument and stat.S_ISDIR(place.stat().st_mode):
            return place
    except FileNotFoundError:
        return place
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise argparse.ArgumentTypeError(f"{argument}: {reason}") from error
    raise argparse.ArgumentTypeError(f"{argument!r}: should be the path of a folder")
