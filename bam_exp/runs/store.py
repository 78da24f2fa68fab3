"""The store of finished runs, results/runs.csv: one line for each run, also for failed ones."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bam_exp.config import NAMED
from bam_exp.errors import ConfigError
from bam_exp.files import write_atomically
from bam_exp.runs.folder import BEGUN, ERROR, RESULT
from bam_exp.runs.run import Run, superseded
from bam_exp.tasks import TASKS

_METRICS = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.metrics))
_HARDWARE = ("device", "cpu", "threads", "precision")
COLUMNS = (
    *NAMED, "seed", *_METRICS, "params", "macs", *_HARDWARE, "seconds_per_epoch", "peak_memory_mib",
    "torch", "commit", "dirty", "fingerprint", "start", "end", "command", "error",
)  # fmt: skip
"""The columns of results/runs.csv; the line of a failed run has its reason in `error` and no figures."""

Line = dict[str, str]
"""A line of the store: column to text."""


def collect(output_dir: Path, *, write: bool = True) -> list[Line]:
    """The lines of results/runs.csv together with those of the folder `runs`; with `write`, the file is brought up to date.

    The caller holds the lock of `results` if it writes.

    Raises:
        ConfigError: if runs.csv is not a store of runs.
    """
    path = output_dir / "results" / "runs.csv"
    lines: dict[tuple[str, ...], Line] = {}
    if path.is_file():
        try:
            stored = pd.read_csv(path, dtype=str, keep_default_na=False)
            missing = set(COLUMNS) - set(stored.columns)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a table of runs ({error})") from error
        if missing:
            raise ConfigError(f"{path}: not a table of runs (no column {min(missing)})")
        for record in stored.to_dict("records"):
            lines[_key(record)] = {str(key): str(value) for key, value in record.items()}
    pattern = "*/" * len(NAMED) + "seed*/"
    files = [file for name in (RESULT, ERROR) for file in (output_dir / "runs").glob(pattern + name)]
    for folder in sorted({file.parent for file in files}):
        line = _line(folder)
        if line is not None and not (line["error"] and _key(line) in lines):  # a failure never replaces figures
            lines[_key(line)] = line
    ordered = [lines[key] for key in sorted(lines)]
    if ordered and write:
        text = pd.DataFrame(ordered, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n")
        if not path.is_file() or path.read_text() != text:
            write_atomically(path, text)
    return ordered


def name_of(line: Mapping[str, str]) -> str:
    """The name of a line's run."""
    return "/".join([*(line[group] for group in NAMED), f"seed{line['seed']}"])


def lines_of(
    run: Run, runs: Iterable[Mapping[str, str]]
) -> tuple[list[tuple[Mapping[str, str], str | None]], list[str]]:
    """The lines of the seeds of a run that stand in a table, and remarks on those that do not.

    A line of an earlier version comes with the reason why this version would measure another figure, if it would. Where there
    are figures of this version, such lines are left out, so that no mean mixes the two.
    """
    standing: dict[str, tuple[int, Mapping[str, str], str | None]] = {}
    """The seed to the schema, line and reason of the newest version that has run it."""
    remarks: list[str] = []
    for line in runs:
        if any(line[group] != run.names[group] for group in NAMED):
            continue
        schema = run.with_seed(int(line["seed"])).schema_of(line["fingerprint"])
        if schema is None:
            remarks.append(f"Stale, not in the table: {name_of(line)} was run with other settings than this version's.")
        elif line["error"]:
            remarks.append(f"FAILED: {name_of(line)}: {line['error']}")
        elif line["seed"] not in standing or schema > standing[line["seed"]][0]:
            standing[line["seed"]] = (schema, line, superseded(schema, line["precision"]))
    lines = [(line, reason) for _, line, reason in standing.values()]
    if all(reason for _, reason in lines):
        return lines, remarks
    remarks += [
        f"Not in the table: {name_of(line)} is of an earlier version: {reason}." for line, reason in lines if reason
    ]
    return [(line, None) for line, reason in lines if not reason], remarks


def _key(line: Mapping[Any, Any]) -> tuple[str, ...]:
    return (*(str(line[group]) for group in NAMED), f"{int(line['seed']):010}", str(line["fingerprint"]))


def _line(folder: Path) -> Line | None:
    """The line of a run's folder; None if the run is neither finished nor failed."""
    try:
        begun = json.loads((folder / BEGUN).read_text())
        if (folder / RESULT).is_file():
            result = json.loads((folder / RESULT).read_text())
        else:
            result = {"error": json.loads((folder / ERROR).read_text())["reason"], **begun}
    except (OSError, ValueError, KeyError):
        return None
    names = dict(zip((*NAMED, "seed"), folder.parts[-5:], strict=True))
    flat: dict[str, Any] = {
        **result,
        **result.get("metrics", {}),
        **result.get("hardware", {}),
        "torch": result.get("versions", {}).get("torch"),
        **names,
        "seed": names["seed"].removeprefix("seed"),
    }
    return {column: _text(flat.get(column)) for column in COLUMNS}


def _text(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
