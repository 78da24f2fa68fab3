"""Reports in LaTeX: one table in the layout of the paper, by booktabs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from bam_exp.figures import FIGURES
from bam_exp.reports.layout import EMPTY, INTERVAL, Column, columns_of, ours_text
from bam_exp.reports.notes import footnotes_of, sentences_of
from bam_exp.reports.render import render
from bam_exp.reports.report import Report, ReportRow
from bam_exp.reports.statistics import CONFIDENCE

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "±": r"$\pm$", "×": r"$\times$",
    "−": "$-$", EMPTY: "--", "`": "",
}  # fmt: skip

_SPREAD = "±"
"""The head of a column with intervals; the title says which they are."""

_MINUS = re.compile(r"(?<![\w.)])([-+])(?=\d)")


def latex(report: Report) -> str:
    """A report as a LaTeX table that is no wider than a line: where it would be, LaTeX makes it smaller."""
    columns = _columns(report)
    notes = footnotes_of(report, columns)
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(report.rows):
        cells = [_number(column.cells[index]) for column in columns]
        for place, column in enumerate(columns):
            if mark := notes.mark(index, column.key):
                cells[place] += rf"\textsuperscript{{{mark}}}"
        rows.append({"label": _label(report, row), "cells": cells, "apart": index and row.names["attention"] == "none"})
    groups, rules = _spans(columns)
    return render(
        "table.tex.j2",
        title=_title(report),
        label=report.stem,
        columns=[_number(column.head) for column in columns],
        groups=groups,
        rules=rules,
        rows=rows,
        sentences=[escaped(sentence) for sentence in sentences_of(report)],
        footnotes=[escaped(sentence) for sentence in notes.sentences],
    )


def _title(report: Report) -> str:
    """The title, with the number of runs if it is the same in all rows, and the meaning of the intervals."""
    own = "The paper's " if report.has_paper and report.title.startswith("Table") else ""
    title = f"{own}{escaped(report.title)}."
    if n := _common_n(report):
        title += f" $n = {n}$ in every row."
    if any(row.cells[report.metric].interval for row in report.rows):
        title += r" $\pm$ is the half-width of a 95 \% interval."
    if len(report.measured) > 1 and any(map(_is_significant, report.rows)):
        title += " * marks p below 0.05, corrected by Holm."
    return title


def escaped(text: str) -> str:
    """Text as LaTeX sets it literally."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _number(text: str) -> str:
    """A cell, with minus signs instead of hyphens."""
    return _MINUS.sub(r"$\1$", escaped(text))


def _columns(report: Report) -> list[Column]:
    """The columns that fit into the text width of an article, or nearly.

    A count stands once, the interval of a gain as its half-width, and n above the table where it is the same in all rows.
    Where several figures are measured, their differences and the intervals of all but the first are left out, and a star
    stands for the p-values below 5 %.
    """
    columns: list[Column] = []
    several = len(report.measured) > 1
    for column in columns_of(report):
        figure, _, part = column.key.partition(".")
        if figure in report.counted:
            if part == "ours":
                columns.append(_count(report, column, figure))
        elif column.key == "gain":
            cells = [_gain_text(row) + ("*" if several and _is_significant(row) else "") for row in report.rows]
            columns.append(replace(column, group="Gain", head=_SPREAD if _has_intervals(report) else "", cells=cells))
        elif column.key == "p":
            columns += [] if several else [replace(column, group="Gain", head="p")]
        elif part == "difference":
            columns += [] if several else [replace(column, head="diff.")]
        elif column.key == "n":
            columns += [column] if _common_n(report) is None else []
        elif part == "ours" and figure != report.metric:
            cells = [text.partition(" ")[0] for text in column.cells]
            columns.append(replace(column, head=column.head.replace(INTERVAL, "").strip(), cells=cells))
        elif column.key != "interval":
            columns.append(replace(column, head=column.head.replace(INTERVAL, _SPREAD)))
    return columns


def _has_intervals(report: Report) -> bool:
    return any(gain.interval for gain in report.gains)


def _common_n(report: Report) -> int | None:
    """The number of runs that every row has; None if the numbers differ, or a note belongs to one of them."""
    counts = {row.n for row in report.rows}
    return counts.pop() if len(counts) == 1 and not any(row.note for row in report.rows) else None


def _is_significant(row: ReportRow) -> bool:
    return row.gain is not None and row.gain.p_holm is not None and row.gain.p_holm < 1 - CONFIDENCE


def _gain_text(row: ReportRow) -> str:
    if row.gain is None:
        return EMPTY
    return f"{row.gain.value:.2f}" + (f" ± {row.gain.interval.half_width:.2f}" if row.gain.interval else "")


def _count(report: Report, column: Column, figure: str) -> Column:
    """A count as the paper prints it where ours is equal to the last digit; else ours, with a note."""
    cells, notes = [], []
    for row in report.rows:
        cell = row.cells[figure]
        same = cell.paper is not None and cell.ours is not None and cell.agrees
        text = cell.paper if same and cell.paper else ours_text(cell)
        cells.append(text.removesuffix("M"))
        differs = cell.paper is not None and cell.ours is not None and not cell.agrees
        notes.append(f"the paper prints {cell.paper}" + (f": {cell.note}" if cell.note else "") if differs else "")
    heading = FIGURES[figure].heading
    return replace(column, group=heading, head="(M)" if figure == "params" else "", cells=cells, notes=notes)


def _label(report: Report, row: ReportRow) -> str:
    """A row's label; below its baseline only what is added to it, indented."""
    baseline = next((other.label for other in report.rows if other.name == row.baseline), "")
    if baseline and row.label.startswith(f"{baseline} +"):
        return rf"\quad {escaped(row.label.removeprefix(baseline).strip())}"
    return (r"\quad " if row.label.startswith("+") else "") + escaped(row.label)


def _spans(columns: Sequence[Column]) -> tuple[list[dict[str, Any]], list[str]]:
    """The heads over several columns, and the rules below those that have a text."""
    groups, rules, first = [], [], 2
    for text, members in groupby(columns, key=lambda column: column.group):
        span = len(list(members))
        groups.append({"span": span, "text": escaped(text)})
        if text:
            rules.append(f"{first}-{first + span - 1}")
        first += span
    return groups, rules
