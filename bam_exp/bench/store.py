"""`bam-bench store`: what the commands cost beside a store of many runs, in CPU seconds and peak memory of child processes."""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from bam_exp.cpu import cpu_name
from bam_exp.runs import Run, run_of
from bam_exp.runs.line import COLUMNS, Line
from bam_exp.tables import load_table, table_names

_EPOCHS = 300
"""Epochs in the result of a made-up run; the file has a hundred kilobytes, as after a run of the paper's recipe."""

_TABLES = "bam_exp.commands.tables"
_WATCHED_S = 20


class Cost(NamedTuple):
    """What a command has cost, together with the processes that it started."""

    seconds: float
    """CPU seconds."""
    megabytes: float
    """Peak resident memory of the largest process."""


class Case(NamedTuple):
    """A command to be measured."""

    name: str
    module: str
    words: tuple[str, ...]
    many: bool = False
    """Whether it is run beside the large store."""


CASES = (
    Case("bam-train --help", "bam_exp", ("--help",)),
    Case("bam-train atention=bam", "bam_exp", ("atention=bam",)),
    Case("bam-train +row/tabel1a=d4", "bam_exp", ("+row/tabel1a=d4",)),
    Case("bam-train data=cifar10", "bam_exp", ("data=cifar10",)),
    Case("bam-train recipe.epoch=3", "bam_exp", ("recipe.epoch=3",)),
    *(Case(f"bam-tables {name} table1a", _TABLES, (name, "table1a")) for name in ("status", "plan", "report", "params")),
    *(Case(f"bam-tables {name}", _TABLES, (name,), many=True) for name in ("status", "plan", "report", "params")),
    Case("bam-tables report table1a", _TABLES, ("report", "table1a"), many=True),
)  # fmt: skip


def measure(options: argparse.Namespace) -> None:
    """Print the costs of the commands, of this package and, if asked, of another checkout beside it."""
    own = Path(__file__).resolve().parents[2]
    checkouts = [own, *([Path(options.against).resolve()] if options.against else [])]
    print(f"{cpu_name()}; {options.lines} lines, {options.folders} run folders of {_EPOCHS} epochs; CPU s and peak MB")
    heads = ["first", "again", *(["before", "ratio"] if options.against else [])]
    print(f"{'':<44}" + "".join(f"{head:>16}" for head in heads), flush=True)
    with tempfile.TemporaryDirectory(prefix="bam_exp-store-") as name:
        empty, large, grown = (Path(name, folder) for folder in ("empty", "large", "grown"))
        make_store(large, options.lines, options.folders)
        make_store(grown, options.lines // 10, 0)
        empty.mkdir()
        for case in CASES:
            if case.many and not options.lines + options.folders:
                continue
            folder, title = (large, f"{case.name}, large store") if case.many else (empty, case.name)
            _print(title, [_cost(code, case, folder, Path(name)) for code in (own, *checkouts)])
        report = Case("report", _TABLES, ("report", "table1a", "--format", "md,csv"))
        for store, lines in ((grown, options.lines // 10), (large, options.lines)):
            costs = [_cost(code, report, store, Path(name)) for code in (own, *checkouts)]
            _print(f"bam-tables report table1a, {lines} lines", costs)
        shares = [_watched(code, large, Path(name)) for code in checkouts]
        print(f"{'bam-tables status --watch, of a core':<44}{'':>16}" + "".join(f"{share:>15.1%} " for share in shares))
        if options.seeds:
            costs = [_announced(code, options.seeds, Path(name)) for code in checkouts]
            print(f"{f'sweep of {options.seeds} seeds, to its first job':<44}{'':>16}" + "".join(map(_text, costs)))


def _print(title: str, costs: Sequence[Cost]) -> None:
    ratio = f"{costs[2].seconds / costs[1].seconds:>15.1f}x" if len(costs) > 2 else ""
    print(f"{title:<44}" + "".join(map(_text, costs)) + ratio, flush=True)


def _text(cost: Cost) -> str:
    return f"{cost.seconds:>8.2f} s{cost.megabytes:>4.0f} MB"


def make_store(folder: Path, lines: int, folders: int) -> None:
    """Write results/runs.csv with so many lines, and so many run folders, spread over the rows of all tables and over seeds."""
    (folder / "results").mkdir(parents=True)
    with (folder / "results" / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_line, islice(_runs(0), lines)))
    epochs = [{"epoch": epoch, "lr": 0.1, "train/loss": 1 / (1 + epoch), "test/top1_error": 90 - epoch / 5,
               "test/top5_error": 50 - epoch / 6, "test/loss": 2 / (1 + epoch)} for epoch in range(_EPOCHS)]  # fmt: skip
    times = [{"train_seconds": 20.0 + epoch / 100, "data_wait_seconds": 0.25, "test_seconds": 2.5,
              "step_ms": 51.1 + epoch / 100} for epoch in range(_EPOCHS)]  # fmt: skip
    tail = json.dumps({"epochs": epochs, "times": times}, indent=1)[1:]
    for run in islice(_runs(100_000), folders):
        line = _line(run)
        hardware = {key: line[key] for key in ("device", "cpu", "threads", "precision")}
        metrics = {key: float(line[key]) for key in run.chosen.recipe.metrics if line[key]}
        result = {"fingerprint": run.fingerprint, "command": run.command, "metrics": metrics, "hardware": hardware,
                  "versions": {"torch": line["torch"]}}  # fmt: skip
        place = folder / "runs" / run.name
        place.mkdir(parents=True)
        (place / "result.json").write_text(f"{json.dumps(result, indent=1)[:-2]},{tail}")


def _runs(first_seed: int) -> Iterator[Run]:
    """Runs of all rows: every row with one seed, then with the next."""
    rows = {run.name: run for name in table_names() for row in load_table(name).rows for run in [run_of(row, 0)]}
    return (run.with_seed(seed) for seed in count(first_seed) for run in rows.values())


def _line(run: Run) -> Line:
    error = 20 + zlib.crc32(run.name.encode()) % 1000 / 250
    measured = {name: str(error) for name in run.chosen.recipe.metrics if name not in ("best_epoch", "test_images")}
    return {
        **dict.fromkeys(COLUMNS, ""), **run.names, **measured, "seed": str(run.seed), "test_images": "10000",
        "params": "25000000", "macs": "1250000000", "device": "GPU", "cpu": "CPU", "threads": "8", "precision": "bfloat16",
        "torch": "2.15.0", "dirty": "False", "fingerprint": run.fingerprint, "command": run.command,
        "end": "2026-01-01T01:00:00+00:00",
    }  # fmt: skip


_LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
usage = os.wait4(child.pid, 0)[2]
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""
"""A small program that starts a command and prints its cost: Linux counts the memory of whoever starts a process as its own."""


def _begun(
    code: Path, words: Sequence[str], folder: Path, cache: Path, launcher: Sequence[str] = ()
) -> "subprocess.Popen[str]":
    """Start a command of a checkout, a module and its arguments, in a folder; the cache is one for each checkout."""
    environment: Mapping[str, str] = {
        **os.environ, "PYTHONPATH": str(code), "XDG_CACHE_HOME": f"{cache}/cache-{code.name}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [*launcher, sys.executable, "-P", "-m", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _cost(code: Path, case: Case, folder: Path, cache: Path) -> Cost:
    launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER)
    printed, _ = _begun(code, (case.module, *case.words), folder, cache, launcher).communicate()
    return Cost(*map(float, printed.split()))


def _cpu_seconds(pid: int) -> float:
    """The CPU seconds of a running process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _watched(code: Path, folder: Path, cache: Path) -> float:
    """The share of a core that `status --watch` takes, once it shows its first table."""
    child = _begun(code, (_TABLES, "status", "table1a", "--watch"), folder, cache)
    time.sleep(_WATCHED_S)
    before = _cpu_seconds(child.pid)
    time.sleep(_WATCHED_S)
    share = (_cpu_seconds(child.pid) - before) / _WATCHED_S
    child.send_signal(signal.SIGINT)
    child.communicate()
    return share


def _announced(code: Path, seeds: int, cache: Path) -> Cost:
    """The cost of a sweep until its first run has a process of its own."""
    words = (
        "bam_exp",
        "-m",
        f"seed=range({seeds})",
        "recipe.epochs=1",
        "recipe.max_steps=1",
        "data.train_size=160",
        "data.test_size=40",
    )
    with tempfile.TemporaryDirectory() as folder:
        child = _begun(code, words, Path(folder), cache)
        while child.poll() is None and not _has_begun_a_run(child.pid):
            time.sleep(0.05)
        cost = Cost(
            _cpu_seconds(child.pid), int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * 4096 / 2**20
        )
        child.terminate()
        child.communicate()
    return cost


def _has_begun_a_run(pid: int) -> bool:
    """Return whether a sweep has started a process of bam_exp; PyTorch starts others while it is imported."""
    try:
        own, *others = (
            Path(f"/proc/{process}/cmdline").read_bytes()
            for process in (pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        )
    except OSError:  # one of them has just ended
        return False
    return any(b"bam_exp" in command and command != own for command in others)
