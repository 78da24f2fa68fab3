"""The store of finished runs, results/runs.csv: one line for each run, also for failed ones."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bam_exp.config import NAMED
from bam_exp.errors import ConfigError
from bam_exp.files import reason_of, write_atomically
from bam_exp.runs.folder import BEGUN, ERROR, RESULT, Begun, Failure, Result, read_file
from bam_exp.runs.run import Run, superseded
from bam_exp.tasks import TASKS

_METRICS = tuple(dict.fromkeys(name for task in TASKS.values() for name in task.metrics))
_HARDWARE = ("device", "cpu", "threads", "precision")
COLUMNS = (
    *NAMED, "seed", *_METRICS, "params", "macs", *_HARDWARE, "seconds_per_epoch", "step_ms", "peak_memory_mib",
    "torch", "commit", "dirty", "fingerprint", "start", "end", "command", "error",
)  # fmt: skip
"""The columns of results/runs.csv; the line of a failed run has its reason in `error` and no figures."""

_REQUIRED = (*NAMED, "seed", "fingerprint", "command", "error")
_NUMBERS = (*_METRICS, "params", "macs", "seconds_per_epoch", "step_ms", "peak_memory_mib")
_SEED_FOLDER = re.compile(r"seed(\d+)")

Line = dict[str, str]
"""A line of the store: column to text."""


class Store(list[Line]):
    """The lines of the store in order, and what could not be used."""

    def __init__(self, lines: list[Line], unusable: list[str]) -> None:
        super().__init__(lines)
        self.unusable = unusable
        """A line for each run folder whose files are damaged, naming the file."""


def collect(output_dir: Path, *, write: bool = True) -> Store:
    """The lines of results/runs.csv together with those of the folder `runs`; with `write`, the file is brought up to date.

    The caller holds the lock of `results` if it writes.

    Raises:
        ConfigError: if runs.csv is not a store of runs, naming the line.
        WriteError: if it cannot be written.
    """
    path = output_dir / "results" / "runs.csv"
    lines = {_key(line): line for line in _read(path)} if path.is_file() else {}
    unusable: list[str] = []
    for folder in _run_folders(output_dir / "runs"):
        try:
            line = _line(folder)
        except ConfigError as error:
            unusable.append(str(error))
            continue
        if line is not None and not (line["error"] and _key(line) in lines):  # a failure never replaces figures
            lines[_key(line)] = line
    ordered = [lines[key] for key in sorted(lines)]
    if ordered and write:
        text = _text_of(ordered)
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomically(path, text)
    return Store(ordered, unusable)


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
            standing[line["seed"]] = (schema, line, superseded(run, schema, line["precision"]))
    lines = [(line, reason) for _, line, reason in standing.values()]
    if all(reason for _, reason in lines):
        return lines, remarks
    remarks += [
        f"Not in the table: {name_of(line)} is of an earlier version: {reason}." for line, reason in lines if reason
    ]
    return [(line, None) for line, reason in lines if not reason], remarks


def _read(path: Path) -> Iterator[Line]:
    """The lines of a store, checked."""
    advice = "restore the file, for example from git"
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        rows = list(reader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a table of runs ({error}); {advice}") from error
    if missing := [column for column in _REQUIRED if column not in (reader.fieldnames or ())]:
        raise ConfigError(f"{path}: not a table of runs (no column {missing[0]}); {advice}")
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(rows, start=2):
        if wrong := _fault(row):
            raise ConfigError(f"{path}, line {number}: {wrong}; {advice}")
        line = {column: row.get(column) or "" for column in COLUMNS}
        if _key(line) in seen:
            raise ConfigError(f"{path}, line {number}: {name_of(line)} occurs twice; {advice}")
        seen.add(_key(line))
        yield line


def _fault(row: Mapping[Any, Any]) -> str | None:
    """The first fault in a line of the store, or None."""
    if None in row or any(value is None for value in row.values()):
        return f"has {'more' if None in row else 'fewer'} cells than the head has columns"
    if not re.fullmatch(r"\d+", row["seed"]):
        return f"seed={row['seed']}: should be a whole number"
    for column in _NUMBERS:
        if value := row.get(column):
            try:
                if not math.isfinite(float(value)):
                    raise ValueError
            except ValueError:
                return f"{column}={value}: should be a number"
    if empty := [column for column in (*NAMED, "fingerprint") if not row[column]]:
        return f"{empty[0]} is empty"
    return None


def _text_of(lines: list[Line]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _run_folders(runs: Path) -> list[Path]:
    """The folders of runs that are finished or have failed; copies beside them, as `seed0.bak`, do not count."""
    pattern = "*/" * len(NAMED) + "seed*/"
    files = [file for name in (RESULT, ERROR) for file in runs.glob(pattern + name)]
    return sorted({file.parent for file in files if _SEED_FOLDER.fullmatch(file.parent.name)})


def _key(line: Mapping[str, str]) -> tuple[str, ...]:
    return (*(line[group] for group in NAMED), f"{int(line['seed']):010}", line["fingerprint"])


def _line(folder: Path) -> Line | None:
    """The line of a run's folder; None if the run is neither finished nor failed.

    Raises:
        ConfigError: if a file of the folder is damaged.
    """
    if (folder / RESULT).is_file():
        content = read_file(folder / RESULT, Result)[1]
    elif (folder / BEGUN).is_file() and (folder / ERROR).is_file():
        content = {**read_file(folder / BEGUN, Begun)[1], "error": read_file(folder / ERROR, Failure)[0].reason}
    else:
        return None
    names = dict(zip((*NAMED, "seed"), folder.parts[-5:], strict=True))
    flat: dict[str, Any] = {
        **content,
        **content.get("metrics", {}),
        **content.get("hardware", {}),
        "torch": content.get("versions", {}).get("torch"),
        "step_ms": _step_ms(content.get("times")),
        **names,
        "seed": names["seed"].removeprefix("seed"),
    }
    return {column: _text(flat.get(column)) for column in COLUMNS}


def _step_ms(times: object) -> float | None:
    """Median milliseconds of a training step over the epochs of a run, without the first step of each process."""
    warm = []
    for epoch in times if isinstance(times, list) else []:
        mean = _positive(epoch, "step_ms")
        seconds, first = _positive(epoch, "train_seconds"), _positive(epoch, "first_step_ms")
        if mean and first and seconds:
            steps = round(1000 * seconds / mean)
            warm += [(1000 * seconds - first) / (steps - 1)] if steps > 1 else []
        elif mean:
            warm.append(mean)
    return round(median(warm), 3) if warm else None


def _positive(epoch: object, key: str) -> float | None:
    value = epoch.get(key) if isinstance(epoch, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None


def _text(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
