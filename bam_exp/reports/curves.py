"""The test figure after each epoch of runs, from their results or, without their folders, from results/curves."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from bam_exp.files import read_json, write_atomically
from bam_exp.reports.report import Report
from bam_exp.runs.folder import RESULT
from bam_exp.runs.line import name_of


def curves_of(report: Report, output_dir: Path) -> dict[str, list[list[float]]]:
    """The figure that the report compares, of each epoch, by row and seed; kept in results/curves once it has been read."""
    curves: dict[str, list[list[float]]] = {}
    for row in report.rows:
        for line in row.lines:
            if len(tested := _curve(line, f"test/{report.metric}", output_dir)) > 1:
                curves.setdefault(row.name, []).append(tested)
    return curves


def stamps_of_curves(report: Report, output_dir: Path) -> list[tuple[str, int, int]]:
    """Row, modification time and size of the file in results/curves of every run, which is first brought up to date."""
    stamps = []
    for row in report.rows:
        for line in row.lines:
            result, kept = _files_of_curve(line, output_dir)
            if _stamp(result) > _stamp(kept):  # the run has finished since
                _curve(line, f"test/{report.metric}", output_dir)
            stamps.append((row.name, *_stamp(kept)))
    return stamps


def _stamp(path: Path) -> tuple[int, int]:
    """Modification time and size of a file; zeros where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 (of thousands of runs)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _files_of_curve(line: Mapping[str, str], output_dir: Path) -> tuple[Path, Path]:
    """The result of a run, and the file in results/curves; neither has to exist."""
    kept = output_dir / "results" / "curves" / f"{line['fingerprint']}.json"
    return output_dir / "runs" / name_of(line) / RESULT, kept


def _curve(line: Mapping[str, str], figure: str, output_dir: Path) -> list[float]:
    file, kept = _files_of_curve(line, output_dir)
    result = read_json(file)
    epochs = result.get("epochs") if result.get("fingerprint") == line["fingerprint"] else None
    if not isinstance(epochs, list):
        return _numbers(read_json(kept).get(figure))
    tested = _numbers([epoch.get(figure) for epoch in epochs if isinstance(epoch, dict)])
    text = json.dumps({figure: tested}) + "\n"
    if tested and kept.is_file() and kept.read_bytes() == text.encode():
        if _stamp(kept) < _stamp(file):
            kept.touch()  # it has been compared with this result
    elif tested:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, text)
    return tested


def _numbers(values: object) -> list[float]:
    """The numbers of a list, without what else it has, such as an epoch that was not tested."""
    return [float(value) for value in values if isinstance(value, int | float)] if isinstance(values, list) else []
