"""The CPU cores of a process, also where the system cannot tell which they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY

from bam_exp.cpu import available_cores, cores_per_process
from bam_exp.data.photos.loader import default_workers


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def test_the_cores_are_those_that_the_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs sched_setaffinity")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_without_affinities_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert (available_cores(), cores_per_process(), cores_per_process(5)) == (12, 12, 2)
    assert default_workers(torch.device("cuda"), 3) == 4
    assert default_workers(torch.device("cpu")) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert (available_cores(), cores_per_process(4)) == (1, 1)


LINUX_ONLY = """
import os, runpy, signal, sys
for name in ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "pipe2", "memfd_create",
             "eventfd", "pidfd_open", "O_TMPFILE", "O_DIRECT", "getrandom", "copy_file_range", "splice"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGRTMIN", "SIGRTMAX", "SIGPOLL", "SIGPWR", "SIGSTKFLT"):
    if hasattr(signal, name):
        delattr(signal, name)
sys.argv[0] = "bam-train"
runpy.run_module("bam_exp", run_name="__main__")
"""


@pytest.mark.faults
def test_a_run_needs_nothing_that_only_linux_has(tmp_path: Path) -> None:
    """What macOS lacks is removed; that its `/proc` is missing is tested where it is read."""
    command = [sys.executable, "-P", "-c", LINUX_ONLY, *TINY, "backbone.widen=0.25", "attention.reduction=4"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1
