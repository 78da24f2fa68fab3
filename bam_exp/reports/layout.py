"""The columns of a report as text, in the order in which every format shows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bam_exp.figures import FIGURES
from bam_exp.reports.report import Cell, Report, ReportRow

EMPTY = "—"
"""The text for a figure that is not known."""

INTERVAL = "± 95 %"
"""The head of a mean over seeds with the half-width of its interval."""


@dataclass(frozen=True)
class Column:
    """One column of text, right-aligned except for the labels."""

    key: str
    """`paper`, `ours`, `difference`, `n`, `gain`, `interval` or `p`, after the figure if it is of one: `params.paper`."""
    group: str
    """The head above it, which neighbours may share."""
    head: str
    cells: Sequence[str]
    notes: Sequence[str]
    """For each row a note on its cell, or an empty string."""


def columns_of(report: Report) -> list[Column]:
    """The columns of a report, apart from the labels."""
    columns = [column for name in report.counted for column in _figure(report, name)]
    for name in report.measured:
        columns += _figure(report, name)
        if name == report.metric:
            columns.append(
                _column(
                    report, "n", FIGURES[name].heading, "n", lambda row: str(row.n or EMPTY), note=lambda row: row.note
                )
            )
        if report.has_paper and not report.variant:
            columns.append(_difference(report, name))
    if any(row.gain for row in report.rows):
        columns += _gains(report)
    return columns


def _column(
    report: Report,
    key: str,
    group: str,
    head: str,
    text: Callable[[ReportRow], str],
    *,
    note: Callable[[ReportRow], str] = lambda row: "",
) -> Column:
    return Column(key, group, head, [text(row) for row in report.rows], [note(row) for row in report.rows])


def _figure(report: Report, name: str) -> list[Column]:
    """The paper's figure, where the table is the paper's, and ours."""
    group = FIGURES[name].heading
    spread = INTERVAL if any(row.cells[name].interval for row in report.rows) else ""
    if not report.has_paper:
        return [_column(report, f"{name}.ours", group, spread, lambda row: ours_text(row.cells[name]))]
    return [
        _column(
            report,
            f"{name}.paper",
            group,
            "paper",
            lambda row: row.cells[name].paper or EMPTY,
            note=lambda row: row.cells[name].note,
        ),
        _column(report, f"{name}.ours", group, f"ours {spread}".strip(), lambda row: ours_text(row.cells[name])),
    ]


def _difference(report: Report, name: str) -> Column:
    def text(row: ReportRow) -> str:
        difference = row.cells[name].difference
        return EMPTY if difference is None else f"{difference:+z.2f}"

    return _column(report, f"{name}.difference", FIGURES[name].heading, "difference", text)


def _gains(report: Report) -> list[Column]:
    """The gain over the baseline, its interval and its corrected p-value, as far as there are any."""
    gain = [_column(report, "gain", "Gain", "", lambda row: f"{row.gain.value:+z.2f}" if row.gain else EMPTY)]
    if any(one.interval for one in report.gains):
        gain += [
            _column(report, "interval", "Gain", "95 % interval", interval_text),
            _column(report, "p", "Gain", "p (Holm)", p_text),
        ]
    return gain


def ours_text(cell: Cell) -> str:
    """Our figure as text: a count in millions or 10^9, a mean with the half-width of its interval."""
    if cell.ours is None:
        return EMPTY
    if cell.figure.name == "params":
        return f"{cell.ours / 1e6:.3f}M"
    if cell.figure.name == "gflops":
        return f"{cell.ours / 1e9:.4f}"
    return f"{cell.ours:.2f}" + (f" ± {cell.interval.half_width:.2f}" if cell.interval else "")


def interval_text(row: ReportRow) -> str:
    """The interval of a row's gain."""
    if row.gain is None or row.gain.interval is None:
        return EMPTY
    return f"{row.gain.interval.low:.2f} to {row.gain.interval.high:.2f}"


def p_text(row: ReportRow) -> str:
    """The corrected p-value of a row's gain."""
    p = None if row.gain is None else row.gain.p_holm
    return EMPTY if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
