"""A thousand runs on one machine: planned, launched, killed, launched again and reported, beside a store of ten thousand lines."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bam_exp.bench.store import make_store
from sweeps.test_sweep import begin

ROW = ("data.train_size=40", "data.test_size=20", "recipe.batch_size=20", "recipe.epochs=1", "recipe.max_steps=1",
       "backbone.widen=0.5", "trainer.threads=1", "trainer.device=cpu")  # fmt: skip
"""A run of one step, which costs what a run costs around its steps."""


def tables(folder: Path, *words: str) -> str:
    command = [sys.executable, "-P", "-m", "bam_exp.commands.tables", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def results(folder: Path) -> dict[Path, int]:
    """The finished runs, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/**/result.json")}


@pytest.mark.parametrize(
    ("count", "lines"),
    [
        pytest.param(8, 100, marks=pytest.mark.faults, id="short"),
        pytest.param(1000, 10_000, marks=pytest.mark.slow, id="full"),
    ],
)
def test_a_thousand_runs(tmp_path: Path, count: int, lines: int) -> None:
    make_store(tmp_path, lines, 0)
    seeds = f"seed=range({count})"
    plan = ("plan", "demo", seeds, *ROW)
    assert f"{3 * count} runs: 0 done" in tables(tmp_path, *plan)

    jobs = len(os.sched_getaffinity(0))
    words = ("-m", "+row/demo=baseline", seeds, *ROW, "hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}")
    with (tmp_path / "interrupted.log").open("w") as log:  # a pipe that nobody reads would be full after a hundred runs
        command = [sys.executable, "-m", "bam_exp", *words]
        sweep = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    while len(results(tmp_path)) < count // 4 and sweep.poll() is None:
        time.sleep(0.2)
    sweep.kill()
    sweep.wait()
    time.sleep(10)  # for runs that are being stopped
    before = results(tmp_path)
    assert count // 4 <= len(before) < count

    again = begin(tmp_path, *words)
    out, err = again.communicate(timeout=3600)
    assert again.returncode == 0, err[-2000:]
    assert f"{count} runs: {len(before)} done already, {count - len(before)} to run" in out
    assert f"{count} of {count} runs done" in out
    after = results(tmp_path)
    assert len(after) == count
    assert before.items() <= after.items()  # none was run twice
    assert not list(tmp_path.glob("runs/**/*.part"))

    assert f"{3 * count} runs: {count} done" in tables(tmp_path, *plan)
    tables(tmp_path, "report", "demo", "--format", "md,csv")
    with (tmp_path / "results" / "runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == lines + count


def test_a_killed_run_among_many_fails_alone(tmp_path: Path) -> None:
    words = ("-m", "+row/demo=baseline", "seed=range(12)", *ROW, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sweep = begin(tmp_path, *words)
    killed = 0
    while not killed and sweep.poll() is None:
        for path in tmp_path.glob("runs/**/owner.json"):
            if found := re.search(r"process (\d+)", path.read_text()):
                os.kill(killed := int(found[1]), signal.SIGKILL)
                break
        time.sleep(0.01)
    out, err = sweep.communicate(timeout=600)
    assert sweep.returncode == 1
    assert "11 of 12 runs done, 1 failed" in out
    [failed] = [line for line in err.splitlines() if line.startswith("FAILED")]
    assert "killed by SIGKILL" in failed
