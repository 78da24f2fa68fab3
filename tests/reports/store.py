"""Stores of made-up runs for the tests of reports."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bam_exp.config import NAMED
from bam_exp.runs import run_of
from bam_exp.runs.store import COLUMNS
from bam_exp.tables import load_table


def write_store(
    folder: Path,
    table: str,
    errors: Mapping[str, Sequence[float]],
    change: Callable[[str, int], Mapping[str, str]] = lambda row, seed: {},
) -> None:
    """Write results/runs.csv with a finished run for each error of each row; `change` sets columns of a line."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}  # by run: rows may share one
    for row in load_table(table).rows:
        for seed, error in enumerate(errors.get(row.name, ())):
            run = run_of(row, seed)
            line = {
                **dict.fromkeys(COLUMNS, ""),
                **{group: run.names[group] for group in NAMED},
                "seed": str(seed), "top1_error": str(error), "top5_error": str(error / 4), "test_images": "10000",
                "params": "25000000", "macs": "1250000000", "device": "TestGPU", "cpu": "TestCPU", "threads": "2",
                "precision": "float32", "torch": "2.15.0", "commit": "0123456789ab", "dirty": "False",
                "fingerprint": run.fingerprint, "start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T01:00:00+00:00",
                "command": run.command,
            }  # fmt: skip
            line |= change(row.name, seed)
            lines[tuple(line[key] for key in (*NAMED, "seed", "fingerprint"))] = line
    (folder / "results").mkdir(parents=True, exist_ok=True)
    with (folder / "results/runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines.values(), key=lambda line: [line[group] for group in (*NAMED, "seed")]))
