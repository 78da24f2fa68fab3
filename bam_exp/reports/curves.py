"""The test figure after each epoch of runs, from their results or, without their folders, from results/curves."""

import json
from pathlib import Path

from bam_exp.files import read_json, write_atomically
from bam_exp.reports.report import Report
from bam_exp.runs.folder import RESULT
from bam_exp.runs.store import Line, name_of


def curves_of(report: Report, output_dir: Path) -> dict[str, list[list[float]]]:
    """The figure that the report compares, of each epoch, by row and seed; kept in results/curves once it has been read."""
    curves: dict[str, list[list[float]]] = {}
    for row in report.rows:
        for line in row.lines:
            if len(tested := _curve(line, f"test/{report.metric}", output_dir)) > 1:
                curves.setdefault(row.name, []).append(tested)
    return curves


def _curve(line: Line, figure: str, output_dir: Path) -> list[float]:
    kept = output_dir / "results" / "curves" / f"{line['fingerprint']}.json"
    result = read_json(output_dir / "runs" / name_of(line) / RESULT)
    epochs = result.get("epochs") if result.get("fingerprint") == line["fingerprint"] else None
    if not isinstance(epochs, list):
        return _numbers(read_json(kept).get(figure))
    tested = _numbers([epoch.get(figure) for epoch in epochs if isinstance(epoch, dict)])
    text = json.dumps({figure: tested}) + "\n"
    if tested and not (kept.is_file() and kept.read_bytes() == text.encode()):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, text)
    return tested


def _numbers(values: object) -> list[float]:
    """The numbers of a list, without what else it has, such as an epoch that was not tested."""
    return [float(value) for value in values if isinstance(value, int | float)] if isinstance(values, list) else []
