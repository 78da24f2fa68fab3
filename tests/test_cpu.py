"""The CPU cores of a process, also where the system cannot tell which they are."""

import os

import pytest
import torch

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
