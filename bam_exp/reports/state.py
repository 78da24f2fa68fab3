"""results/README.md: the state of every table, from the store."""

from collections.abc import Mapping, Sequence
from typing import Any

from bam_exp.durations import duration
from bam_exp.reports.assemble import Sources
from bam_exp.reports.cost import Costs, Work
from bam_exp.reports.facts import RowFacts, row_counts
from bam_exp.reports.render import render
from bam_exp.reports.report import Report
from bam_exp.runs.rows import data_sizes
from bam_exp.tables import Table

REFERENCE: Mapping[str, Any] = {"device": "NVIDIA H200", "cpu": "", "threads": 8, "precision": "bfloat16"}
"""The device for which the page guesses times, so that it is the same wherever it is written."""


def state_line(table: Table, facts: Sequence[RowFacts], report: Report, sources: Sources) -> dict[str, str]:
    """A table's line on the page."""
    costs = Costs([], REFERENCE)
    seconds = 0.0
    rows = zip(table.rows, facts, report.rows, strict=True)
    distinct = {of_row.run.name: (row, of_row, len(table.seeds) - found.n) for row, of_row, found in rows}
    for row, of_row, missing in distinct.values():
        cost, sizes = row_counts(row, of_row, sources.counts)[0], data_sizes(of_row.run.chosen)
        work = Work.of(of_row.run, cost, *sizes)
        seconds += max(0, missing) * costs.estimate(work).seconds
    needs_data = "" if facts[0].run.names["data"].startswith(("shapes", "scenes")) else " data_root=DIR"
    link = f"[{table.name}.md]({table.name}.md)" if report.used else f"`bam-train +experiment={table.name}{needs_data}`"
    return {
        "title": table.title.replace(" (not a table of the paper)", ""),
        "size": f"{len(distinct)} x {len(table.seeds)}",
        "finished": f"{len(report.used)}",
        "guess": _guess(table, seconds),
        "report": link,
    }


def _guess(table: Table, seconds: float) -> str:
    """The time of what is missing, in words; counted work says little of a detector, whose losses and boxes take most of a step."""
    if seconds == 0:
        return "none"
    if table.task == "detection":
        return "not known"
    return duration(seconds) if seconds < 7200 else f"{seconds / 3600:.0f} h"


def state_page(tables: Sequence[Mapping[str, str]], variants: Sequence[Report]) -> str:
    """The page."""
    return render(
        "README.md.j2",
        tables=tables,
        variants=[{"title": report.title, "stem": report.stem} for report in variants],
        device=REFERENCE["device"],
    )
