"""A sweep on a real SLURM cluster of two nodes: what happens to its jobs costs time, never a result.

Jobs run on both nodes; a killed run, a lost job and a time limit fail alone and are named; a pre-empted run is put back into
the queue and goes on where it was; in the end every figure is the one of an undisturbed run on one machine.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .cluster import Cluster
from .conftest import RUN, measured

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("slurm")]  # one cluster on a machine

LAUNCHER = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1")

Sweep = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def sweep(slurm: Cluster, tmp_path: Path) -> Iterator[Sweep]:
    """Start a sweep on the cluster in an empty folder."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bam_exp", "-m", *RUN, *LAUNCHER, *words]
        environment = {**slurm.environment, "OMP_NUM_THREADS": "1"}
        begun.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()
    slurm.clear()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a sweep."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """What the condition gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)
    return found


def training(folder: Path, seed: int) -> int:
    """The process that trains the run with this seed, once it has a checkpoint."""

    def owner() -> int | None:
        for path in folder.glob(f"runs/**/seed{seed}/checkpoint-*.pt"):
            return int(json.loads((path.parent / "owner.json").read_text())["process"].split()[1])
        return None

    return until(owner, f"seed {seed} to train")


def job(folder: Path, index: int) -> tuple[str, str]:
    """SLURM's number of a sweep's newest job of this index, and its logs so far."""
    found = [path for path in folder.glob("runs/.sweep/.submitit/*") if re.fullmatch(rf"\d+_{index}", path.name)]
    newest = max(found, key=lambda path: int(path.name.partition("_")[0]))
    return newest.name, "".join(path.read_text() for path in sorted(newest.glob("*_log.*")))


def failures(err: str) -> dict[int, str]:
    """Of each run that the sweep names as failed, by its seed: the reason."""
    return {int(seed): reason for seed, reason in re.findall(r"^FAILED  .*/seed(\d+): (.*)$", err, re.MULTILINE)}


def test_a_killed_run_fails_alone_and_a_preempted_one_goes_on(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[int, dict[str, Any]]
) -> None:
    running = sweep("seed=0,1,2,3")
    os.kill(training(tmp_path, 0), signal.SIGKILL)
    training(tmp_path, 1)
    slurm.signal(job(tmp_path, 1)[0], "USR2")
    code, out, err = ended(running)
    assert failures(err) == {0: "killed by SIGKILL (out of memory?)"}
    assert "3 of 4 runs done, 1 failed" in out
    assert code == 1
    assert "continued at epoch" in job(tmp_path, 1)[1]
    used = {
        slurm.run("scontrol", "show", "job", job(tmp_path, index)[0]).split("BatchHost=")[1][:2] for index in range(4)
    }
    assert used == {"n1", "n2"}

    code, out, err = ended(sweep("seed=0,1,2,3"))
    assert (code, failures(err)) == (0, {})
    assert "4 runs: 3 done already, 1 to run" in out
    assert measured(tmp_path) == undisturbed


def test_a_run_preempted_without_a_signal_of_its_own_goes_on(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[int, dict[str, Any]]
) -> None:
    """SLURM's own pre-emption, as `scontrol requeue`: SIGTERM to every process, SIGKILL a little later, back into the queue."""
    running = sweep("seed=0,1")
    training(tmp_path, 0)
    training(tmp_path, 1)
    slurm.run("sbatch", "--partition=urgent", "--gpus-per-node=1", "--output=/dev/null", "--wrap=sleep 1")
    requeued = until(
        lambda: [
            n
            for n in (job(tmp_path, 0)[0], job(tmp_path, 1)[0])
            if "Restarts=1" in slurm.run("scontrol", "show", "job", n)
        ],
        "SLURM to requeue a job",
    )
    assert len(requeued) == 1
    code, out, err = ended(running)
    assert (code, failures(err)) == (0, {})
    assert "2 of 2 runs done" in out
    assert "continued at epoch" in job(tmp_path, int(requeued[0][-1]))[1]
    assert measured(tmp_path) == {seed: undisturbed[seed] for seed in (0, 1)}


def test_a_lost_job_and_a_time_limit_fail_alone(
    slurm: Cluster, sweep: Sweep, tmp_path: Path, undisturbed: dict[int, dict[str, Any]]
) -> None:
    running = sweep("seed=0,1", "hydra.launcher.timeout_min=5")
    run = training(tmp_path, 0)
    os.kill(int(Path(f"/proc/{run}/stat").read_text().split()[3]), signal.SIGKILL)  # the job itself, not the run
    training(tmp_path, 1)
    slurm.signal(job(tmp_path, 1)[0], "USR2")  # what SLURM sends before the time limit
    code, out, err = ended(running)
    assert code == 1, err
    assert failures(err).keys() == {0, 1}, err
    assert "timed-out too many times" in failures(err)[1]
    assert "0 of 2 runs done, 2 failed" in out
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(run, 0)

    code, out, err = ended(sweep("seed=0,1"))
    assert (code, failures(err)) == (0, {})
    assert measured(tmp_path) == {seed: undisturbed[seed] for seed in (0, 1)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_only_the_nodes_need_a_gpu(sweep: Sweep) -> None:
    """A login node without a GPU starts the sweep; a node without one says so instead of training on its CPU for a week."""
    code, _, err = ended(sweep("seed=0", "trainer.device=cuda"))
    assert code == 1
    assert "no GPU" in failures(err)[0]


@pytest.mark.parametrize("tasks", ["--ntasks=2", "--ntasks-per-node=1"])
def test_srun_starts_the_ranks_of_a_run(slurm: Cluster, tmp_path: Path, tasks: str) -> None:
    """One task on each of two nodes; the nodes of this cluster have no names of their own, hence MASTER_ADDR."""
    step = ["srun", "--nodes=2", tasks, "--kill-on-bad-exit=1", "--time=5"]
    words = [sys.executable, "-m", "bam_exp", *RUN, "trainer=ddp", "trainer.device=cpu", "recipe.max_steps=2"]
    environment = {**slurm.environment, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    run = subprocess.run(
        [*step, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("top-1 error") == 1
    [path] = tmp_path.glob("runs/**/result.json")
    assert json.loads(path.read_text())["hardware"]["device"] == "2 x CPU"


def test_jobs_do_not_wait_for_each_others_gpus(slurm: Cluster, tmp_path: Path) -> None:
    """On most clusters each job counts its GPUs from 0: a lease on "GPU 0" must not keep another job waiting."""
    program = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from bam_exp.machine.gpus import gpu_lease
with gpu_lease(SimpleNamespace(uses_gpu=True, gpus=None, runs_per_gpu=1, processes=1)):
    Path(os.environ["SLURMD_NODENAME"]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    while len(list(Path().glob("n?"))) < 2:
        time.sleep(0.1)
"""
    jobs = [
        subprocess.Popen(
            ["srun", "--gpus-per-node=1", "--nodes=1", f"--nodelist={node}", "--time=1", sys.executable, "-c", program],
            cwd=tmp_path,
            env=slurm.environment,
        )
        for node in ("n1", "n2")
    ]
    try:
        assert [process.wait(timeout=60) for process in jobs] == [0, 0]
        assert [(tmp_path / node).read_text() for node in ("n1", "n2")] == ["0", "0"]
    finally:
        for process in jobs:
            process.kill()
        slurm.clear()
