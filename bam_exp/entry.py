"""The entry points of the console commands: Ctrl-C ends a command in one line, also while it is still importing."""

import signal
import sys
from importlib import import_module
from pathlib import Path

_INTERRUPTIBLE = (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
)  # it is ignored in the background of a script
if _INTERRUPTIBLE:  # During the imports below the shell shows ^C and exit code 130, and Python no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from bam_exp.console import INTERRUPTED, ending_at_once, open_missing_streams, say_interrupted  # noqa: E402
from bam_exp.processes import continued_by  # noqa: E402

if _INTERRUPTIBLE:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_OF_TRAIN = frozenset({
    "PIL", "captum", "faster_coco_eval", "filelock", "hydra", "jinja2", "joblib", "lightning_fabric", "matplotlib", "omegaconf",
    "pandas", "pytorch_lightning", "rich", "safetensors", "scipy", "tensorboard", "torchvision", "yaml",
})  # fmt: skip
"""The modules that the extra `train` brings."""


def _run(command: str) -> None:
    """Run a command's `main`; without what it needs, also only later, the extra to install is named."""
    open_missing_streams()
    try:
        Path.cwd()
    except FileNotFoundError:
        print(f"bam-{command}: the current folder no longer exists; change to another", file=sys.stderr)
        raise SystemExit(2) from None
    program, typed = f"bam-{command}", continued_by(f"bam-{command}", sys.argv[1:])
    try:
        with ending_at_once(program, typed):
            main = import_module(f"bam_exp.commands.{command}").main
        main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OF_TRAIN:
            raise
        print(f"{program}: {error.name} is not installed; pip install 'bam_exp[train]' brings it", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        say_interrupted(program, typed)
        raise SystemExit(INTERRUPTED) from None


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


def doctor() -> None:
    """`bam-doctor`."""
    _run("doctor")


def maps() -> None:
    """`bam-maps`."""
    _run("maps")
