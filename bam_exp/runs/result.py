"""The content of `result.json`, the record of a finished run."""

import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bam_exp import __version__
from bam_exp.complexity import Complexity
from bam_exp.runs.folder import now
from bam_exp.runs.run import SCHEMA, Run


def make_result(
    run: Run,
    *,
    metrics: Mapping[str, float],
    cost: Complexity,
    history: Sequence[Mapping[str, float]],
    hardware: Mapping[str, Any],
    start: str,
    times: Mapping[str, Any],
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
        metrics: the figures of the run, under the names that its task declares.
        history: the figures of each epoch.
        start: the time of the first start.
        times: durations, waiting and memory, see `training.timing`.
        details: what the task records beside its figures.
    """
    libraries = {name: version(name) for name in ("torch", "torchvision", "pytorch-lightning")}
    measured = dict(times)
    return {
        "schema": SCHEMA,
        "run": {**run.names, "seed": run.seed},
        "command": run.command,
        "fingerprint": run.fingerprint,
        "figures_from": run.figures_from,
        "metrics": metrics,
        "params": cost.params,
        "macs": cost.macs,
        **details,
        "epochs": history,
        "times": measured.pop("times"),
        "hardware": hardware,
        "versions": {"bam_exp": __version__, **libraries},
        **_commit(),
        "start": start,
        "end": now(),
        **measured,
    }


def _commit() -> dict[str, Any]:
    """The commit of the code and whether its tree was dirty; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", str(here)):
            changed = git("status", "--porcelain", "--", ":/bam_exp", ":/conf")  # nothing else can change a number
            return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"commit": None, "dirty": None}
