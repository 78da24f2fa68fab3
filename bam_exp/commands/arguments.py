"""The parser of command lines, and types of arguments."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from bam_exp import __version__


class Parser(argparse.ArgumentParser):
    """argparse's parser, with `--version`; a wrong argument ends in one line, without the usage before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if " " not in self.prog:  # sub-commands have "command sub-command"
            self.add_argument("--version", action="version", version=f"{self.prog} {__version__}")

    def error(self, message: str) -> NoReturn:
        """Print the message and end with exit code 2."""
        self.exit(2, f"{self.prog}: {message}  (--help shows the usage)\n")


def path(argument: str) -> Path:
    """Convert an argument to a path, replacing a leading `~` or `~user` even where the shell has not done so."""
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{argument}: there is no such home folder") from error
