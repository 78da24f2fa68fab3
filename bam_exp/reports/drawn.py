"""The pictures of a report as files, drawn again only if what they show has changed: matplotlib takes seconds."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bam_exp.config import remembered
from bam_exp.files import read_json
from bam_exp.reports.report import Report
from bam_exp.runs.folder import RESULT
from bam_exp.runs.line import name_of


@dataclass(frozen=True)
class Drawn:
    """A picture of a report."""

    inline: str
    """As SVG, for a page."""
    png: bytes
    svg: str
    width: int
    """In pixels, at 100 an inch."""


def drawn(report: Report, output_dir: Path) -> dict[str, Drawn]:
    """Name to picture, for every picture for which the report has runs; without any run there is none."""
    if not report.used:
        return {}

    def draw() -> dict[str, list[object]]:
        from bam_exp.reports.plots import pictures_of, png, svg

        pictures = pictures_of(report, _curves(report, output_dir))
        inline = {
            name: svg(picture).decode() for name, picture in pictures.items()
        }  # drawn again, its layout moves a little
        return {
            name: [
                inline[name],
                base64.b64encode(png(picture)).decode(),
                svg(picture).decode(),
                round(picture.get_figwidth() * 100),
            ]
            for name, picture in pictures.items()
        }

    shown = replace(report, rows=[replace(row, lines=()) for row in report.rows], remarks=())
    runs = [(row.name, *_stamp(output_dir, line)) for row in report.rows for line in row.lines]
    kept = remembered("pictures", [repr(shown), runs], draw)
    return {name: Drawn(inline, base64.b64decode(png), svg, width) for name, (inline, png, svg, width) in kept.items()}


def _stamp(output_dir: Path, line: Mapping[str, str]) -> tuple[int, int]:
    """Modification time and size of a run's result, which has its curve; zeros where its folder is gone."""
    try:
        status = os.stat(f"{output_dir}/runs/{name_of(line)}/{RESULT}")  # noqa: PTH116 (of thousands of runs)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _curves(report: Report, output_dir: Path) -> dict[str, list[list[float]]]:
    """The test figure of each epoch by row and seed, of the runs whose folders are there."""
    curves: dict[str, list[list[float]]] = {}
    key = f"test/{report.metric}"
    for row in report.rows:
        for line in row.lines:
            epochs = read_json(output_dir / "runs" / name_of(line) / RESULT).get("epochs")
            if isinstance(epochs, list) and all(isinstance(epoch, dict) for epoch in epochs):
                tested = [float(epoch[key]) for epoch in epochs if isinstance(epoch.get(key), int | float)]
                if len(tested) > 1:
                    curves.setdefault(row.name, []).append(tested)
    return curves
