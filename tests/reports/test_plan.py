"""`bam-tables plan` and `status`: what is done, running, failed, stale or missing, the cost, and what fits a budget."""

import json
import os
import socket
from pathlib import Path

import pytest
from conftest import Command
from filelock import FileLock

from bam_exp.durations import seconds_of
from bam_exp.machine import Machine
from reports.test_report import fake_result


def measured_here(folder: Path, seconds_per_epoch: float) -> None:
    """Make a finished run one that was measured on this machine."""
    result = json.loads((folder / "result.json").read_text())
    here = Machine().description()
    (folder / "result.json").write_text(
        json.dumps({**result, "hardware": here, "seconds_per_epoch": seconds_per_epoch, "macs": 1_304_700_000})
    )


def test_a_plan_starts_nothing_and_names_what_is_missing(bam_tables: Command, tmp_path: Path) -> None:
    ended = bam_tables("plan", "table1a", "seed=0")
    assert ended.code == 0
    assert "8 runs: 0 done, running or stale; 8 to run" in ended.out
    assert "the time of 8 is not known" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_estimates_from_measured_runs_and_picks_for_a_budget(bam_tables: Command, tmp_path: Path) -> None:
    measured_here(fake_result(tmp_path, 20.0), 2.0)
    ended = bam_tables("plan", "table1a", "seed=0,1", "--budget", "25m")
    assert ended.code == 0
    assert "16 runs: 1 done" in ended.out
    commands = [line.strip() for line in ended.out.splitlines() if line.startswith("  bam-train ")]
    # 300 epochs of 2 s are 10 minutes; the baseline has 0.94 of the multiply-accumulates: two runs fit, the baseline first
    assert len(commands) == 2
    assert "attention=none" in commands[0]
    assert commands[0].endswith("seed=0")


def test_a_plan_names_stale_runs_with_the_reason(bam_tables: Command, tmp_path: Path) -> None:
    folder = fake_result(tmp_path, 20.0)
    content = json.loads((folder / "run.json").read_text())
    content["figures_from"]["recipe"]["lr"] = 0.3
    (folder / "run.json").write_text(json.dumps({**content, "fingerprint": "0" * 16}))
    (folder / "result.json").unlink()
    ended = bam_tables("status", "table1a", "seed=0")
    assert "1 stale" in ended.out
    assert "recipe.lr was 0.3, now 0.1" in " ".join(ended.out.replace("│", " ").split())


def test_status_tells_the_states_apart(bam_tables: Command, tmp_path: Path) -> None:
    fake_result(tmp_path, 20.0, seed=0)
    for seed, content in enumerate(("failed", "running", "dead"), start=1):
        folder = fake_result(tmp_path, 20.0, seed=seed)
        (folder / "result.json").unlink()
        progress = {"epoch": 7, "epochs": 300, "seconds_to_go": 120, "time": 0}
        (folder / "progress.json").write_text(json.dumps(progress))
        # The number of a process says nothing, because the system gives it to another one later: the lock decides.
        if content == "running":
            lock = FileLock(folder / ".lock")
            lock.acquire()
        if content == "failed":
            (folder / "error.json").write_text(json.dumps({"reason": "Diverged: the training loss is nan"}))
        else:
            (folder / "owner.json").write_text(
                json.dumps({"process": f"process {os.getpid()} on {socket.gethostname()}"})
            )
        if content == "dead":
            (folder / "checkpoint-00000001-0123456789abcdef.pt").write_bytes(b"")
    ended = bam_tables("status", "table1a", "seed=0,1,2,3")
    assert ended.code == 1
    text = " ".join(ended.out.split())
    assert "1 done, 1 running, 1 failed, 1 stopped" in text
    for word in ("epoch 7 of 300, 2 min to go", "Diverged", "20.00 %"):
        assert word in text


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("25m", 1500), ("1.5h", 5400), ("2d", 172800)])
def test_budgets_have_units(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_a_budget_without_a_unit_is_refused(bam_tables: Command) -> None:
    ended = bam_tables("plan", "table1a", "--budget", "25")
    assert ended.code == 2
    assert "25m" in ended.err
