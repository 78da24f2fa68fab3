"""Types of command line arguments."""

import argparse
from pathlib import Path


def path(argument: str) -> Path:
    """Convert an argument to a path, replacing a leading `~` or `~user` even where the shell has not done so."""
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{argument}: there is no such home folder") from error
