"""Checks of the GPU: driver, card, kernels and bfloat16, and what `--gpu` examines, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

from bam_exp.doctor.finding import Check, Finding

QUERY = ("index", "name", "driver_version", "memory.total", "compute_cap", "mig.mode.current", "compute_mode")
NO_GPU = Finding("not run", "no GPU")

EXAMINATIONS: dict[str, tuple[str, int]] = {
    "hidden": ("leases.hidden", 60),
    "unusable": ("leases.unusable", 60),
    "lease first": ("leases.lease_first", 60),
    "one lock": ("leases.one_lock", 120),
    "MIG": ("leases.mig", 90),
    "no nvidia-smi": ("leases.without_nvidia_smi", 120),
    "bfloat16": ("arithmetic.bfloat16", 60),
    "float32": ("arithmetic.float32", 60),
    "amp": ("arithmetic.amp", 90),
    "channels_last": ("arithmetic.channels_last", 120),
    "deterministic": ("arithmetic.deterministic", 240),
    "compiled": ("training.compiled", 240),
    "no waiting": ("training.no_waiting", 120),
    "CUDA graphs": ("training.graphs", 300),
    "two ranks": ("ranks.two_ranks", 300),
    "resume": ("training.resume", 300),
    "resume compiled": ("training.resume_compiled", 420),
}
"""The examinations of `--gpu`, quick ones first: module and function in this package, and the seconds that each may take."""

WITHOUT_GPU = ("hidden", "unusable")
"""Those that need a PyTorch with CUDA only."""


def checks() -> list[Check]:
    """The checks of the driver and the card."""
    return [Check("driver", _driver), Check("gpu", lambda: card() or NO_GPU)]


def examinations() -> Iterator[Check]:
    """The checks of `bam-doctor --gpu`: each runs in a process of its own, so that none asks the driver before another."""
    for name in EXAMINATIONS:
        yield Check(f"gpu: {name}", lambda name=name: _examined(name))  # type: ignore[misc]


def _driver() -> Finding:
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if variable is None else f"; CUDA_VISIBLE_DEVICES={variable!r}"
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("note", f"no nvidia-smi{shown}", "runs train on the CPU, unless PyTorch finds a GPU by itself")
    if asked.returncode != 0:
        reason = " ".join((asked.stdout + asked.stderr).split())
        return Finding(
            "wrong", f"nvidia-smi fails: {reason}{shown}", "reinstall the driver, or reboot after its update"
        )
    cards = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    if variable is not None and variable.strip() in ("", "-1"):
        return Finding("note", f"{' | '.join(cards)}{shown}", "the variable hides every GPU: runs train on the CPU")
    return Finding("ok", f"{' | '.join(cards)}{shown}")


@cache
def card() -> Finding | None:
    """What PyTorch says of the GPU, asked by another process; None if this machine shows it none."""
    if find_spec("torch") is None:
        return Finding("not run", "PyTorch is missing")
    return run_alone("card.card", 120)


def _examined(name: str) -> Finding:
    function, seconds = EXAMINATIONS[name]
    if find_spec("pytorch_lightning") is None:
        return Finding("not run", "needs the extra `train`", "pip install 'bam_exp[train]'")
    if name not in WITHOUT_GPU:
        if (found := card()) is None:
            return NO_GPU
        if found.state == "wrong":
            return Finding("not run", "the GPU cannot compute (see gpu)")
    return run_alone(function, seconds) or NO_GPU


def run_alone(function: str, seconds: int) -> Finding | None:
    """The finding of a function of this package, as `module.function`, that runs in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="bam-doctor-") as folder:
        command = [sys.executable, "-P", "-m", "bam_exp.doctor.alone", function, folder]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return Finding("wrong", f"not done after {seconds} s", "it hangs, or the GPU is in use: try it once more")
    last = (ended.stdout.strip().splitlines() or [""])[-1]
    try:
        found = json.loads(last)
        return None if found is None else Finding(**found)
    except (ValueError, TypeError):
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Finding("wrong", f"ended with exit code {ended.returncode}: {said}", "please report it, with this line")
