"""The store of finished runs, results/runs.csv: one line for each run, also for failed ones."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bam_exp.config import NAMED
from bam_exp.errors import ConfigError
from bam_exp.files import reason_of, write_atomically
from bam_exp.runs.finished import Finished
from bam_exp.runs.folder import RESULT
from bam_exp.runs.line import COLUMNS, MEASURED, Line, line_of, name_of
from bam_exp.runs.run import Run, superseded

__all__ = ["COLUMNS", "Line", "Store", "collect", "lines_of", "name_of"]

_REQUIRED = (*NAMED, "seed", "fingerprint", "command", "error")
_NUMBERS = (*MEASURED, "params", "macs", "seconds_per_epoch", "step_ms", "peak_memory_mib")


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
    lines = _read(path) if path.is_file() else {}
    stored = list(lines.values())
    unusable: list[str] = []
    finished = Finished(output_dir)
    for name in finished.names():
        try:
            line = finished.line(name) or line_of(finished.runs / name)
        except ConfigError as error:
            unusable.append(str(error))
            continue
        if line is None:
            continue
        if line != lines.get(_key(line)) and (wrong := _fault(line, 0)):
            unusable.append(f"{finished.runs / name / RESULT}: {wrong}; move its folder away to run it again")
            continue
        if not (line["error"] and _key(line) in lines):  # a failure never replaces figures
            lines[_key(line)] = line
    finished.save()
    ordered = [lines[key] for key in sorted(lines)]
    if write and ordered != stored:  # a file of an earlier version stays as it is until there is something new
        write_atomically(path, _text_of(ordered))
    return Store(ordered, unusable)


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
    names = run.names
    for line in runs:
        if any(line[group] != name for group, name in names.items()):
            continue
        schema = run.schema_of(line["fingerprint"], int(line["seed"]))
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


def _read(path: Path) -> dict[tuple[str, ...], Line]:
    """The lines of a store by their keys, checked."""
    advice = "restore the file, for example from git"
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")) if row]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({reason_of(error)})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a table of runs ({error}); {advice}") from error
    head = rows[0] if rows else []
    if missing := [column for column in _REQUIRED if column not in head]:
        raise ConfigError(f"{path}: not a table of runs (no column {missing[0]}); {advice}")
    if twice := [column for column in head if head.count(column) > 1]:
        raise ConfigError(f"{path}: the column {twice[0]} occurs twice; {advice}")
    if unknown := [column for column in head if column not in COLUMNS]:
        raise ConfigError(f"{path}: there is no column {unknown[0]!r}, which would be lost; {advice}")
    absent = dict.fromkeys(COLUMNS, "")
    lines: dict[tuple[str, ...], Line] = {}
    for number, row in enumerate(rows[1:], start=2):
        line = {**absent, **dict(zip(head, row, strict=False))}
        if wrong := _fault(line, len(row) - len(head)):
            raise ConfigError(f"{path}, line {number}: {wrong}; {advice}")
        key = _key(line)
        if key in lines:
            raise ConfigError(f"{path}, line {number}: {name_of(line)} occurs twice; {advice}")
        lines[key] = line if len(line) == len(COLUMNS) else {column: line[column] for column in COLUMNS}
    return lines


def _fault(line: Line, excess: int) -> str | None:
    """The first fault in a line of the store, which has so many cells too many, or None."""
    if excess:
        return f"has {'more' if excess > 0 else 'fewer'} cells than the head has columns"
    if not line["seed"].isdecimal():
        return f"seed={line['seed']}: should be a whole number"
    for column in _NUMBERS:
        if value := line[column]:
            try:
                if not math.isfinite(float(value)):
                    raise ValueError
            except ValueError:
                return f"{column}={value}: should be a number"
    if empty := [column for column in (*NAMED, "fingerprint") if not line[column]]:
        return f"{empty[0]} is empty"
    return None


def _text_of(lines: Sequence[Line]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([line.values() for line in lines])
    return file.getvalue()


def _key(line: Mapping[str, str]) -> tuple[str, ...]:
    return (*(line[group] for group in NAMED), f"{int(line['seed']):010}", line["fingerprint"])
