"""A hundred runs through a SLURM cluster, of which one is killed and the rest are done."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .cluster import Cluster
from .test_slurm import LAUNCHER, failures, until

pytestmark = pytest.mark.xdist_group("slurm")

RUN = ("data.train_size=40", "data.test_size=20", "recipe.batch_size=20", "recipe.epochs=1", "recipe.max_steps=1",
       "backbone.widen=0.25", "attention=none", "trainer.threads=1", "trainer.device=cpu")  # fmt: skip


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(3, marks=pytest.mark.faults, id="short"),
        pytest.param(100, marks=pytest.mark.slow, id="full"),
    ],
)
def test_a_hundred_runs(slurm: Cluster, tmp_path: Path, count: int) -> None:
    command = [sys.executable, "-m", "bam_exp", "-m", f"seed=range({count})", *RUN, *LAUNCHER]
    environment = {**slurm.environment, "OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        owner = until(lambda: next(tmp_path.glob("runs/**/owner.json"), None), "a run to begin", seconds=300)
        os.kill(int(json.loads(owner.read_text())["process"].split()[1]), signal.SIGKILL)
        out, err = sweep.communicate(timeout=3600)
    finally:
        sweep.kill()
        slurm.clear()
    [reason] = failures(err).values()
    assert reason.startswith("killed by SIGKILL")
    assert f"{count - 1} of {count} runs done, 1 failed" in out
    assert len(list(tmp_path.glob("runs/**/result.json"))) == count - 1
