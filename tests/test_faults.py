"""Sweeps that lose nothing: kills at random moments, damaged checkpoints, simultaneous starts, writers side by side.

Each test has a short form that `make test` runs and the full one of docs/reliability.md (`make test-faults`).
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import TINY, Command, ready

from bam_exp import tables
from bam_exp.errors import Busy
from bam_exp.reports import write
from bam_exp.runs import result_of
from bam_exp.runs.store import collect
from bam_exp.training.train import train

# Processes forked from one that has imported everything: a start costs milliseconds, so that a hundred kills are minutes.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "bam_exp.reports.write",
        "bam_exp.training.train",
        "bam_exp.tasks.classifier",
        "test_faults",
    ]
)

ROWS = ("attention=none", "attention=se attention.reduction=8", "attention=bam attention.reduction=8", "attention=bam")
WORDS = (*TINY, "recipe.epochs=3", "backbone.widen=0.5", "trainer.checkpoint_minutes=0.005")


def overrides(folder: Path) -> list[list[str]]:
    """Twelve runs: four rows with three seeds."""
    own = [word for word in WORDS if word != "recipe.epochs=2"]
    rows = [row.split() for row in ROWS[:3]] + [["attention=bam", "attention.reduction=4"]]
    return [[*row, f"seed={seed}", f"output_dir={folder}", *own] for row in rows for seed in range(3)]


def quiet() -> None:
    """Send what a forked process prints nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def train_all(jobs: list[list[str]]) -> None:
    """Train what is missing of some runs, one after the other."""
    quiet()
    for words in jobs:
        run, parts, machine = ready(*words)
        if result_of(run) is None:
            train(run, parts, machine)


def figures(folder: Path) -> str:
    """What a table would hold of the runs of this folder: the lines of runs.csv without times, and the names of all files."""
    lines = collect(folder, write=False)
    times = ("seconds_per_epoch", "step_ms", "peak_memory_mib", "start", "end", "commit", "dirty")
    kept = [{key: value for key, value in line.items() if key not in times} for line in lines]
    return json.dumps(kept, indent=1)


def write_reports(folder: str, times: int) -> None:
    quiet()
    tables.register(tables=["demo"])
    for _ in range(times):
        assert write.main(["demo"], folder) == 0


def table(folder: Path) -> bytes:
    """The report of these runs: three of the four rows are the demo's, with data and recipe of their own."""
    process = PROCESSES.Process(target=write_reports, args=(str(folder), 1))
    process.start()
    process.join()
    [path] = folder.glob("results/demo--*.md")
    return path.read_bytes()


def files(folder: Path) -> list[str]:
    """The files of the runs, the changing parts of their names left out."""
    names = [path.relative_to(folder) for path in (folder / "runs").rglob("*") if path.is_file()]
    return sorted(str(name.parent / name.name.partition(".tfevents")[0].partition("-")[0]) for name in names)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = PROCESSES.Process(target=train_all, args=(overrides(folder),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert len(list(folder.glob("runs/**/result.json"))) == 12
    return folder


def kill_often(folder: Path, kills: int, seed: int, longest: float) -> int:
    """Train the twelve runs while a killer strikes at random moments; the number of kills that met a living process."""
    chance, met = random.Random(seed), 0
    while True:
        process = PROCESSES.Process(target=train_all, args=(overrides(folder),))
        process.start()
        process.join(chance.uniform(0, longest) if met < kills else None)
        if process.exitcode is not None:
            assert process.exitcode == 0
            if met >= kills:
                return met
            # Done before the killer was: begin again, so that every kill meets training.
            shutil.rmtree(folder / "runs")
            continue
        process.kill()
        process.join()
        met += 1


@pytest.mark.xdist_group("kills")  # they share `undisturbed`
@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        (8, 0),
        pytest.param(34, 1, marks=pytest.mark.faults),
        pytest.param(33, 2, marks=pytest.mark.faults),
        pytest.param(33, 3, marks=pytest.mark.faults),
    ],
)
def test_kills_at_random_moments_change_nothing(undisturbed: Path, tmp_path: Path, kills: int, seed: int) -> None:
    assert kill_often(tmp_path, kills, seed, longest=4.0) == kills
    assert figures(tmp_path) == figures(undisturbed)
    assert table(tmp_path) == table(undisturbed)
    assert files(tmp_path) == files(undisturbed)


@pytest.mark.faults
def test_kills_through_the_command_line_parent_included(tmp_path: Path) -> None:
    words = ["-m", "attention=none,bam", "seed=0,1", *TINY, "recipe.epochs=20", "trainer.checkpoint_minutes=0.01"]
    words = [word for word in words if word != "recipe.epochs=2"]
    chance = random.Random(0)

    def sweep(folder: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "bam_exp", *words, f"output_dir={folder}"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    met, undisturbed = 0, sweep(tmp_path / "b")
    while met < 20:
        parent = sweep(tmp_path / "a")
        time.sleep(chance.uniform(3, 10))
        if parent.poll() is not None:
            shutil.rmtree(tmp_path / "a" / "runs")
            continue
        owners = [
            json.loads(path.read_text())["process"].split()[1] for path in (tmp_path / "a").glob("runs/**/owner.json")
        ]
        parent_too = chance.random() < 0.5 or not owners
        if parent_too:
            parent.kill()
        for owner in owners if chance.random() < 0.7 else []:
            with suppress(ProcessLookupError):  # it has just ended, or was killed before
                os.kill(int(owner), signal.SIGKILL)
        if not parent_too:
            parent.terminate()
        parent.wait()
        met += 1
    for _ in range(3):  # a run whose sweep was killed may still be saving its checkpoint when the next one starts
        if sweep(tmp_path / "a").wait() == 0:
            break
    assert undisturbed.wait() == 0
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def start_at(words: list[str], moment: float, answers: "multiprocessing.Queue[str]") -> None:
    quiet()
    run, parts, machine = ready(*words)
    time.sleep(max(0, moment - time.time()))
    try:
        train(run, parts, machine)
        answers.put("ran")
    except Busy as error:
        answers.put(str(error))


@pytest.mark.parametrize("starts", [4, pytest.param(16, marks=pytest.mark.faults)])
def test_simultaneous_starts_give_one_run(tmp_path: Path, starts: int) -> None:
    [words, *_] = overrides(tmp_path)
    words = [word if "epochs" not in word else "recipe.epochs=60" for word in words]
    answers: multiprocessing.Queue[str] = PROCESSES.Queue()
    moment = time.time() + 2 + starts
    processes = [PROCESSES.Process(target=start_at, args=(words, moment, answers)) for _ in range(starts)]
    for process in processes:
        process.start()
    said = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert said.count("ran") == 1
    busy = [line for line in said if line != "ran"]
    assert all("already running (process " in line for line in busy)
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1


def test_reports_and_sweeps_side_by_side_tear_nothing(tmp_path: Path) -> None:
    jobs = overrides(tmp_path)
    quarters = [jobs[index::4] for index in range(4)]
    processes = [PROCESSES.Process(target=train_all, args=(quarter,)) for quarter in quarters]
    processes += [PROCESSES.Process(target=write_reports, args=(str(tmp_path), 3)) for _ in range(8)]
    for process in processes:
        process.start()
    torn = 0
    while any(process.is_alive() for process in processes):
        for path in tmp_path.glob("results/*"):
            if path.suffix == ".csv":
                text = path.read_text()
                torn += not text.endswith("\n") or len({line.count(",") >= 8 for line in text.splitlines()}) > 1
        time.sleep(0.01)
    assert all(process.exitcode == 0 for process in processes)
    assert torn == 0
    write = PROCESSES.Process(target=write_reports, args=(str(tmp_path), 1))
    write.start()
    write.join()
    assert (tmp_path / "results/runs.csv").read_text().count("\n") == 13
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[int], Path]:
    """A file system of a few MiB, where this user may mount one."""
    mounted: list[Path] = []

    def mount(mebibytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("mounting a small file system needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(bam_train: Command, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(12)
    words = [f"output_dir={disk}", *TINY]
    filler = disk / "filler"
    filler.write_bytes(b"0" * 11_000_000)
    ended = bam_train(*words)
    assert ended.code == 1
    [line] = [line for line in ended.err.splitlines() if line.startswith("bam-train: ")]
    assert "no space left on device" in line.lower()
    assert not list(disk.glob("runs/**/*.part"))
    filler.unlink()
    assert bam_train(*words).code == 0
