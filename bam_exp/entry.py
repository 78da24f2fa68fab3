"""The entry points of the console commands: Ctrl-C ends a command in one line, also while it is still importing."""

import _signal as signal  # type: ignore[import-not-found]  # what `signal` imports takes as long as Python itself

_BEFORE = signal.getsignal(signal.SIGINT)
if _BEFORE is signal.default_int_handler:  # and not ignored, as in the background of a script
    # During the imports below: the shell shows ^C and exit code 130, and no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys  # noqa: E402
from importlib import import_module  # noqa: E402

from bam_exp.console import INTERRUPTED, ending_at_once, open_missing_streams, say_interrupted  # noqa: E402
from bam_exp.processes import continued_by  # noqa: E402

signal.signal(signal.SIGINT, _BEFORE)

_OF_TRAIN = frozenset({
    "PIL", "captum", "faster_coco_eval", "filelock", "hydra", "jinja2", "joblib", "lightning_fabric", "matplotlib", "omegaconf",
    "pandas", "pytorch_lightning", "rich", "safetensors", "scipy", "tensorboard", "torchvision", "yaml",
})  # fmt: skip
"""The modules that the extra `train` brings."""


def _run(command: str) -> None:
    """Run a command's `main`; without what it needs, also only later, the extra to install is named."""
    open_missing_streams()
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
