"""The pictures of a report as files, drawn again only if what they show has changed: matplotlib takes seconds."""

import base64
from dataclasses import dataclass, replace
from pathlib import Path

from bam_exp.config import remembered
from bam_exp.reports.curves import curves_of, stamps_of_curves
from bam_exp.reports.report import Report


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

        pictures = pictures_of(report, curves_of(report, output_dir))
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
    kept = remembered("pictures", [repr(shown), stamps_of_curves(report, output_dir)], draw)
    return {name: Drawn(inline, base64.b64decode(png), svg, width) for name, (inline, png, svg, width) in kept.items()}
