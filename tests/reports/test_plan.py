"""`bam-tables plan` and `status`: what is done, running, failed, stale or missing, the cost, and what fits a budget."""

import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, Command, ready
from filelock import FileLock

from bam_exp.durations import duration, seconds_of
from bam_exp.machine import Machine
from reports.test_report import fake_result


def measured_here(folder: Path, step_ms: float, epochs: int = 2) -> None:
    """Make a finished run one that was measured on this machine: its first step took a second, each other `step_ms`."""
    from bam_exp.cpu import available_cores

    result = json.loads((folder / "result.json").read_text())
    hardware = {**Machine().description(), "threads": available_cores()}
    epoch = {"train_seconds": 391 * step_ms / 1000, "data_wait_seconds": 0.0, "step_ms": step_ms}
    slower = (391 * step_ms + 1000 - step_ms) / 391
    first = {**epoch, "train_seconds": 391 * slower / 1000, "step_ms": slower, "first_step_ms": 1000.0}
    times = [first, *[epoch] * (epochs - 1)]
    content = {**result, "hardware": hardware, "times": times, "macs": 1_304_700_000}
    (folder / "result.json").write_text(json.dumps(content))


def test_a_plan_starts_nothing_and_guesses_before_anything_is_measured(bam_tables: Command, tmp_path: Path) -> None:
    ended = bam_tables("plan", "table1a", "seed=0")
    assert ended.code == 0
    assert "8 runs: 0 done, running or stale; 8 to run" in ended.out
    assert "? a rough guess, off by a factor of two either way; --measure times it (8 of 8)" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_a_plan_estimates_from_measured_steps_and_picks_for_a_budget(bam_tables: Command, tmp_path: Path) -> None:
    measured_here(fake_result(tmp_path, 20.0), 5.0)
    ended = bam_tables("plan", "table1a", "seed=0,1", "--budget", "25m")
    assert ended.code == 0
    assert "16 runs: 1 done" in ended.out
    commands = [line.strip() for line in ended.out.splitlines() if line.startswith("  bam-train ")]
    # 300 epochs of 391 steps of 5 ms and 79 test steps of a third of that are 10 min 26 s; the baseline has 0.94 of the
    # multiply-accumulates: two runs fit, the baseline first
    assert len(commands) == 2
    assert "attention=none" in commands[0]
    assert commands[0].endswith("seed=0")
    assert "10 min" in ended.out
    assert "~ scaled from the measured steps of other networks (14 of 15)" in ended.out


def test_a_step_time_leaves_out_the_first_step_and_the_length_of_the_run(tmp_path: Path) -> None:
    """A run of a single epoch gives the step time of a longer one."""
    from bam_exp.runs.store import collect

    measured_here(fake_result(tmp_path, 20.0, seed=0), 5.0, epochs=1)
    measured_here(fake_result(tmp_path, 20.0, seed=1), 5.0, epochs=9)
    assert [float(line["step_ms"]) for line in collect(tmp_path, write=False)] == pytest.approx([5.0, 5.0], abs=0.01)


def test_steps_of_another_precision_or_of_other_threads_do_not_count() -> None:
    from bam_exp.reports.cost import Costs

    here = {"device": "CPU", "cpu": "TestCPU", "threads": 2, "precision": "float32"}
    line = {**{key: str(value) for key, value in here.items()}, "data": "cifar100-train_size400", "backbone": "resnet50",
            "attention": "none", "batch_size": "128", "step_ms": "7.5", "macs": "1000"}  # fmt: skip
    assert Costs([line], here).steps == {(("cifar100", "resnet50", "none"), 128): [7.5]}
    for key, value in (("precision", "bfloat16"), ("threads", "4"), ("cpu", "Other"), ("step_ms", "")):
        assert Costs([{**line, key: value}], here).steps == {}
    assert Costs([{**line, "precision": "bfloat16"}], {**here, "precision": "auto"}).steps == {
        (("cifar100", "resnet50", "none"), 128): [7.5]
    }


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


def test_measuring_times_the_real_command_and_leaves_no_run_behind(tmp_path: Path) -> None:
    """After it, the plan of the same network, on more images and for more epochs, is a measured one."""
    from bam_exp.reports.cost import Costs, Work
    from bam_exp.reports.counts import count
    from bam_exp.reports.measure import measure, measured_lines
    from bam_exp.reports.plan import device_of
    from bam_exp.runs import run_of
    from bam_exp.runs.rows import data_sizes
    from bam_exp.tables import load_table

    row = load_table("demo").rows[0]
    short = run_of(row, 0, [*TINY, f"output_dir={tmp_path}"])
    network = ("shapes_small", short.names["backbone"], "none")
    measure({network: short}, tmp_path)
    assert not (tmp_path / "runs").exists()
    [line] = measured_lines(tmp_path)
    assert float(line["step_ms"]) > 0

    extra = ["recipe.batch_size=32", "trainer.threads=1", "trainer.device=cpu"]
    run = run_of(row, 0, extra)
    work = Work.of(run, count(run.chosen, {}, {}), *data_sizes(run.chosen))
    estimate = Costs([line], device_of(run)).estimate(work)
    assert (work.network, estimate.source) == (network, "measured")
    assert estimate.seconds == pytest.approx((work.train_steps + work.test_steps / 3) * float(line["step_ms"]) / 1000)


def test_after_runs_of_two_steps_a_plan_is_within_half_of_an_epoch(
    bam_tables: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are measured by the time of this process, which other processes of the machine do not lengthen much."""
    from bam_exp.reports.cost import Costs, Work, disk
    from bam_exp.reports.counts import count
    from bam_exp.reports.plan import device_of
    from bam_exp.runs.rows import data_sizes
    from bam_exp.runs.store import collect
    from bam_exp.training.train import train

    monkeypatch.setattr("bam_exp.training.timing.time", SimpleNamespace(monotonic=time.process_time))
    threads = torch.get_num_threads()
    extra = ["data.train_size=960", "data.test_size=200", "recipe.epochs=1", "trainer.threads=1", "trainer.device=cpu"]
    words = ["+row/demo=baseline", f"output_dir={tmp_path}", *extra]
    for seed in (1, 2, 3):
        train(*ready(*words, f"seed={seed}", "recipe.max_steps=2"))
    run, parts, machine = ready(*words)
    cost, sizes = count(run.chosen, {}, {}), data_sizes(run.chosen)
    estimate = Costs(collect(tmp_path, write=False), device_of(run)).estimate(Work.of(run, cost, *sizes))
    ended = bam_tables("plan", "demo", "seed=0", *extra)
    assert f"  {duration(estimate.seconds)} " in ended.out
    assert "guess" not in ended.out

    train(run, parts, machine)
    torch.set_num_threads(threads)
    measured = json.loads((run.folder / "result.json").read_text())["seconds_per_epoch"]
    assert (estimate.source, 1.5 > estimate.seconds / measured > 1 / 1.5) == ("measured", True), (estimate, measured)

    checkpoint, weights = (next(run.folder.glob(name)) for name in ("checkpoint-*.pt", "weights.safetensors"))
    assert disk(cost) == pytest.approx(2 * checkpoint.stat().st_size + weights.stat().st_size, rel=0.2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (48, "48 s"),
        (700, "12 min"),
        (11_100, "3 h 05 min"),
        (356_000, "98 h 53 min"),
        (360_000, "4 d"),
        (67_188_000, "778 d"),
    ],
)
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
