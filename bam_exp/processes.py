"""What the processes of one command tell each other, by environment variables: who started whom, and which run of a sweep it is."""

import os
import shlex
from collections.abc import Sequence

PARENT = "BAM_EXP_PARENT"
"""The environment variable that holds the process id of the sweep or the launcher that started a run."""

LAUNCHED = "BAM_EXP_LAUNCHED"
"""The environment variable that bam-train sets for the ranks that it starts: the command that continues the run, or empty."""

SWEEP = "BAM_EXP_SWEEP"
"""The environment variable that holds the process id of the sweep, by which a launcher's worker knows its parent."""

PLACE = "BAM_EXP_PLACE"
"""The environment variable that holds the place of a run in its sweep, as `3/24` or `3/24 r8`, where `r8` is its row."""

BESIDE_OTHERS = "BAM_EXP_BESIDE_OTHERS"
"""The environment variable of a run that trains beside others in one terminal, where progress bars would overwrite each other."""


def place() -> str:
    """`[3/24 r8] ` for a run of a sweep, else an empty string: the lines of runs that train side by side are told apart by it."""
    words = os.environ.get(PLACE, "")
    return f"[{words}] " if words else ""


def continued_by(program: str, words: Sequence[str]) -> str | None:
    """The command that continues what was interrupted: what was typed, for a shell.

    It is None in a process for which another one shows it: in a run of a sweep, and in all ranks of a machine but the first.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    if LAUNCHED in os.environ:
        return os.environ[LAUNCHED] or None
    return None if PARENT in os.environ else shlex.join([program, *words])
