"""Examinations of the choice of a GPU: who may use which, leases before the driver is asked, and GPUs that cannot be used.

Each function runs in a process of its own that has not asked the driver for anything yet.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from bam_exp.doctor.finding import Finding
from bam_exp.errors import ConfigError
from bam_exp.machine import Machine
from bam_exp.machine.gpus import VISIBLE, gpu_lease, visible_gpus

NO_CUDA = Finding("not run", "this PyTorch is built without CUDA")

_LEASE = """
from bam_exp.machine import Machine
from bam_exp.machine.gpus import gpu_lease
with gpu_lease(Machine()) as gpus:
    import torch
    print("leased", gpus, torch.ones(2, device="cuda").sum().item(), flush=True)
"""


def hidden(_folder: Path) -> Finding:
    """With CUDA_VISIBLE_DEVICES=-1 or empty there is no GPU: `auto` is the CPU and `cuda` is refused in one line."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return NO_CUDA
    for value in ("-1", ""):
        os.environ[VISIBLE] = value
        if visible_gpus() or Machine().uses_gpu:
            return Finding("wrong", f"{VISIBLE}={value!r} leaves {visible_gpus()}")
        try:
            Machine(device="cuda").check_device()
        except ConfigError as error:
            said = str(error)
        else:
            return Finding("wrong", f"{VISIBLE}={value!r}: trainer.device=cuda is not refused")
    return Finding("ok", f"{VISIBLE}=-1 and ='' hide every GPU; trainer.device=cuda says: {said}")


def unusable(_folder: Path) -> Finding:
    """A GPU that cannot compute is one line: under `auto` the run goes to the CPU, under `cuda` it is refused."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return NO_CUDA
    os.environ[VISIBLE] = "GPU-00000000-0000-0000-0000-000000000000"
    with redirect_stderr(StringIO()) as said:
        opened = Machine().opened()
    if opened.uses_gpu or len(said.getvalue().splitlines()) != 1:
        return Finding("wrong", f"auto goes on with {opened.device}, and says {said.getvalue()!r}")
    try:
        Machine(device="cuda").opened()
    except ConfigError as error:
        if "\n" not in str(error):
            return Finding("ok", said.getvalue().strip())
    return Finding("wrong", "trainer.device=cuda is not refused in one line")


def lease_first(_folder: Path) -> Finding:
    """A lease is in CUDA_VISIBLE_DEVICES before the driver is asked, so the process then sees the leased card only."""
    before = visible_gpus()
    with gpu_lease(Machine()) as leased:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return Finding("wrong", "the driver was asked before the lease was taken")
        if os.environ[VISIBLE] != ",".join(leased):
            return Finding("wrong", f"leased {leased}, shown {os.environ[VISIBLE]}")
        torch.ones(1, device="cuda")
        count = torch.cuda.device_count()
    return Finding("ok" if count == 1 else "wrong", f"of {before} leased {leased}; the process sees {count}")


def one_lock(_folder: Path) -> Finding:
    """Index and UUID of a card are one lease: while one process holds the one, another waits for the other."""
    uuids = _names("GPU-")
    if not uuids:
        return Finding("not run", "nvidia-smi names no GPU by UUID")
    os.environ[VISIBLE] = "0"
    with gpu_lease(Machine()):
        ended = _second({VISIBLE: uuids[0]}, lambda text: "waiting for a free GPU" in text)
    if "leased" in ended or "waiting for a free GPU" not in ended:
        return Finding("wrong", f"{VISIBLE}={uuids[0]} beside a lease of 0: {ended.strip() or 'nothing was said'}")
    return Finding("ok", f"a process with {VISIBLE}={uuids[0]} waits for one with 0")


def mig(_folder: Path) -> Finding:
    """An instance of a card that is divided (MIG) is leased by its name and computes."""
    names = _names("MIG-")
    if not names:
        return Finding("not run", "no card here is divided (MIG)")
    said = _second({VISIBLE: ",".join(names)}, lambda text: "leased" in text)
    return Finding("ok" if f"leased ['{names[0]}'] 2.0" in said else "wrong", said.strip())


def without_nvidia_smi(_folder: Path) -> Finding:
    """Where nvidia-smi is missing, as in some containers, another process counts the GPUs."""
    os.environ["PATH"] = str(_folder)
    os.environ.pop(VISIBLE, None)
    found = visible_gpus()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return Finding("wrong", "this process has asked the driver itself")
    count = torch.cuda.device_count()
    return Finding("ok" if len(found) == count else "wrong", f"found {found}, and there are {count}")


def _names(kind: str) -> list[str]:
    """The UUIDs that nvidia-smi prints, of cards (`GPU-`) or of their instances (`MIG-`)."""
    try:
        printed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [part.split(")")[0] for part in printed.split("UUID: ")[1:] if part.startswith(kind)]


def _second(variables: dict[str, str], enough: Callable[[str], bool], seconds: int = 60) -> str:
    """What another process says that wants a lease; it is ended once that is `enough`, or after some seconds."""
    command = [sys.executable, "-P", "-c", _LEASE]
    process = subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    over = threading.Timer(seconds, process.kill)
    over.start()
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if enough(said):
            break
    over.cancel()
    process.kill()
    process.wait()
    return said
