"""Timing twenty training steps of networks that no run has timed yet, by the command that trains them."""

import csv
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bam_exp.files import write_atomically
from bam_exp.runs.run import Run, as_override
from bam_exp.runs.store import Line, collect

STEPS = 21
"""Twenty steps, after the first, in which kernels are chosen or compiled."""

_FILE = "step_times.csv"
_COLUMNS = (
    "data",
    "backbone",
    "attention",
    "batch_size",
    "device",
    "cpu",
    "threads",
    "precision",
    "macs",
    "step_ms",
    "torch",
    "end",
)


def measure(runs: Mapping[tuple[str, str, str], Run], output_dir: Path) -> None:
    """Train each of these networks for twenty steps in a folder of its own, and add its step time to results/step_times.csv."""
    lines = measured_lines(output_dir)
    for network, run in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            line = _timed(run, folder)
        if line is None:
            continue
        names = dict(zip(("data", "backbone", "attention"), network, strict=True))
        batch = str(run.figures_from["recipe"]["batch_size"])
        lines.append({column: {**line, **names, "batch_size": batch}[column] for column in _COLUMNS})
        print(f"{'/'.join(network)}: {float(line['step_ms']):.1f} ms a step", flush=True)
        (output_dir / "results").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile("w+", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
            file.seek(0)
            write_atomically(output_dir / "results" / _FILE, file.read())


def measured_lines(output_dir: Path) -> list[Line]:
    """The step times that have been measured; a file that is not ours is left alone."""
    path = output_dir / "results" / _FILE
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [dict(line) for line in csv.DictReader(file) if set(line) == set(_COLUMNS)]


def _timed(run: Run, folder: str) -> Line | None:
    """The line of a run of a few steps; None, with the reason on stderr, if it fails."""
    limits = (f"recipe.max_steps={STEPS}", f"output_dir={as_override(folder)}")
    words = [word for word in run.full_overrides if not word.startswith("output_dir=")]
    command = [sys.executable, "-m", "bam_exp", *words, *limits]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = [line for line in collect(Path(folder), write=False) if line["step_ms"]]
    if ended.returncode or not lines:
        reason = (ended.stderr.strip().splitlines() or ["it ended without a result"])[-1]
        print(f"{run.name}: not measured: {reason}", file=sys.stderr)
        return None
    return lines[0]
