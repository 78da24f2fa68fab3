"""Sweeps: a run that fails fails alone, is named with its reason, and the same command runs exactly what is missing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, Command, run_of
from filelock import FileLock
from omegaconf import OmegaConf

from bam_exp.processes import PLACE, place
from bam_exp.sweeps.sweep import Sweep

SLOW = (*(word for word in TINY if "epochs" not in word), "recipe.epochs=400")
"""A run that lasts longer than any test waits."""


def begin(folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bam_exp", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def owner(folder: Path, seconds: float = 60) -> int:
    """The process id of a run that has begun to train in this folder."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in folder.glob("runs/**/progress.json"):
            return int(json.loads((path.parent / "owner.json").read_text())["process"].split()[1])
        time.sleep(0.05)
    raise AssertionError("no run began to train")


def test_a_diverging_run_fails_alone(bam_train: Command, tmp_path: Path) -> None:
    words = ["-m", "recipe.lr=1.0e+30,0.1", *TINY]
    ended = bam_train(*words)
    assert ended.code == 1
    failed = [line for line in ended.err.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "lr1e_30" in failed[0].replace("+", "_")
    assert "the training loss is" in failed[0]
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1
    [error] = tmp_path.glob("runs/**/error.json")
    assert "Diverged" in json.loads(error.read_text())["traceback"]
    again = bam_train(*words)
    assert again.code == 1
    assert "2 runs: 1 done already, 1 to run" in again.out


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_killed_run_fails_alone(tmp_path: Path, launcher: str) -> None:
    words = [f"hydra/launcher={launcher}"] * (launcher == "joblib") + ["hydra.launcher.n_jobs=1"] * (
        launcher == "joblib"
    )
    sweep = begin(tmp_path, "-m", "recipe.epochs=400,1", *SLOW[:-1], *words)
    os.kill(owner(tmp_path), signal.SIGKILL)
    out, err = sweep.communicate(timeout=100)
    assert sweep.returncode == 1
    assert "1 of 2 runs done, 1 failed" in out
    [failed] = [line for line in err.splitlines() if line.startswith("FAILED")]
    assert "epochs400" in failed
    assert "killed by SIGKILL" in failed


def test_the_runs_of_a_killed_sweep_stop_and_are_continued(tmp_path: Path) -> None:
    """joblib's workers outlive the process that started them; their runs must not."""
    words = ["-m", "seed=0", *SLOW[:-1], "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    sweep = begin(tmp_path, *words, "recipe.epochs=200")
    run = owner(tmp_path)
    sweep.kill()
    sweep.wait()
    end = time.monotonic() + 60
    while (folder := next(tmp_path.glob("runs/**/owner.json"), None)) is not None and time.monotonic() < end:
        time.sleep(0.1)
    assert folder is None
    while Path(f"/proc/{run}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert time.monotonic() < end
    assert list(tmp_path.glob("runs/**/checkpoint-*.pt"))


def worker(sweep: int) -> int:
    """A process of joblib in which runs of a sweep are started."""
    processes = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    for process in processes:
        with suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
            if b"--process-name" in words and int(parent) == sweep:
                return process
    raise AssertionError("the sweep has no worker")


def test_a_killed_worker_ends_the_sweep_in_a_line_and_saves_its_run(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", *SLOW[:-1], "hydra/launcher=joblib", "recipe.epochs=200"]
    sweep = begin(tmp_path, *words, "hydra.launcher.n_jobs=2")
    owner(tmp_path)
    os.kill(worker(sweep.pid), signal.SIGKILL)
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 1
    assert "Traceback" not in err
    assert "bam-train: a worker of the sweep was killed (out of memory?)" in err
    assert "0 of 2 runs done, " in err
    assert list(tmp_path.glob("runs/**/checkpoint-*.pt"))
    assert not list(tmp_path.glob("runs/**/owner.json"))


def test_the_workers_of_a_killed_sweep_end_though_nobody_reads_their_results(tmp_path: Path) -> None:
    """Runs of a second each: joblib gives a worker several jobs ahead, and their results fill a pipe."""
    words = [
        "-m",
        "seed=range(40)",
        "recipe.max_steps=1",
        *SLOW[:-1],
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    sweep = begin(tmp_path, *words)
    owner(tmp_path)
    process = worker(sweep.pid)
    sweep.kill()
    end = time.monotonic() + 60
    while Path(f"/proc/{process}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert time.monotonic() < end
    sweep.communicate(timeout=60)  # nothing holds its output open


def test_a_run_over_its_time_limit_fails_alone(bam_train: Command) -> None:
    ended = bam_train("-m", "recipe.epochs=400", *SLOW[:-1], "trainer.time_limit_minutes=0.2")
    assert ended.code == 1
    assert "ran longer than trainer.time_limit_minutes=0.2" in ended.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_continue(tmp_path: Path, number: int, code: int) -> None:
    run = begin(tmp_path, *SLOW)
    os.kill(owner(tmp_path), number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == code
    [line] = [line for line in err.splitlines() if "continue with:" in line]
    assert "recipe.epochs=400" in line
    assert list(tmp_path.glob("runs/**/checkpoint-*.pt"))
    assert not list(tmp_path.glob("runs/**/result.json"))


def test_a_sweep_told_to_stop_stops_its_run_with_a_checkpoint(tmp_path: Path) -> None:
    sweep = begin(tmp_path, "-m", "seed=0,1", *SLOW)
    run = owner(tmp_path)
    sweep.send_signal(signal.SIGTERM)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 143
    assert "runs done" not in out
    assert list(tmp_path.glob("runs/**/seed0/checkpoint-*.pt"))
    assert not list(tmp_path.glob("runs/**/seed1"))
    with pytest.raises(ProcessLookupError):
        os.kill(run, 0)


def test_a_second_start_of_a_run_says_who_has_it(tmp_path: Path) -> None:
    first = begin(tmp_path, *SLOW)
    number = owner(tmp_path)
    second = begin(tmp_path, *SLOW)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {number}" in err
    assert len(err.strip().splitlines()) == 1
    first.terminate()
    first.communicate(timeout=60)


def test_a_folder_that_cannot_be_written_is_one_line(bam_train: Command, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    ended = bam_train(*TINY)
    assert ended.code == 2
    [line] = ended.err.strip().splitlines()
    assert "output_dir" in line


def test_a_sweep_that_slurm_refuses_is_one_line(
    bam_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "sbatch: error: invalid partition specified: nowhere"
    programs = {"sbatch": f"#!/bin/sh\necho '{said}' >&2\nexit 1\n", "srun": "#!/bin/sh\n"}
    for name, script in programs.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    ended = bam_train("-m", "seed=0,1", *TINY, "hydra/launcher=submitit_slurm", "hydra.launcher.partition=nowhere")
    assert ended.code == 2
    assert [line for line in ended.err.splitlines() if line.startswith("bam-train: ")] == [f"bam-train: {said}"]
    assert "Traceback" not in ended.err


def test_a_job_knows_its_place_and_the_sweep_its_time_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two runs was done before; the first job took a minute, so three more take three."""
    monkeypatch.setattr("bam_exp.sweeps.sweep.is_done", lambda run: run.name in ("before", "first"))
    monkeypatch.setenv(PLACE, "")
    callback = Sweep()
    callback.jobs = [
        SimpleNamespace(name=name, folder=tmp_path / name) for name in ("before", "first", "second", "third", "fourth")
    ]
    callback.runs = {run.folder: run for run in callback.jobs}
    callback.results = [str(tmp_path / run.name) for run in callback.jobs]
    for done in ("before", "first"):
        (tmp_path / done).touch()
    callback.started, callback.done_before = time.time() - 60, 1
    callback.on_job_start(OmegaConf.create({"hydra": {"job": {"num": 2}, "runtime": {"choices": {"row/demo": "bam"}}}}))
    assert capsys.readouterr().out == "run 3 of 5, about 3 min to go\n"
    assert place() == "[3/5 bam] "


def test_a_run_that_another_sweep_is_training_has_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback, run = Sweep(), run_of(*TINY, f"output_dir={tmp_path}")
    callback.runs = {run.name: run}
    run.folder.mkdir(parents=True)
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    (run.folder / "owner.json").write_text(json.dumps({"process": owner}))
    with FileLock(run.folder / ".lock"), pytest.raises(SystemExit) as end:
        callback.on_multirun_end(OmegaConf.create({"hydra": {"runtime": {"choices": {}}}}))
    assert end.value.code == 1
    said = capsys.readouterr()
    assert said.err == f"RUNNING {run.name}: {owner} is training it\n"
    assert said.out.startswith("0 of 1 runs done, 1 running in another process")
