"""Reports in Markdown."""

from bam_exp.reports.layout import Column, columns_of
from bam_exp.reports.notes import footnotes_of, sentences_of
from bam_exp.reports.report import Report

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def markdown(report: Report) -> str:
    """A report for a person, with everything that belongs to its numbers."""
    columns = columns_of(report)
    notes = footnotes_of(report, columns)
    table = [["", *(row.label for row in report.rows)]]
    for place, column in enumerate(columns):
        texts = [text + _mark(notes.mark(index, column.key)) for index, text in enumerate(column.cells)]
        table.append([_head(columns, place), *texts])
    widths = [max(map(len, cells)) for cells in table]
    lines = [f"# {report.title}", ""]
    if report.variant:
        changed = " and ".join(f"{group} `{name}`" for group, name in report.variant.items())
        lines += [f"This is not {report.table.title} itself: its runs have {changed}.", ""]
    for index in range(len(report.rows) + 1):
        texts = [
            cells[index].rjust(width) if place else cells[index].ljust(width)
            for place, (cells, width) in enumerate(zip(table, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(texts)} |")
        if index == 0:
            lines.append(
                "|" + "|".join("-" * (width + 1) + (":" if place else "-") for place, width in enumerate(widths)) + "|"
            )
    lines += ["", *(f"- {sentence}" for sentence in sentences_of(report))]
    lines += [f"- {_mark(str(number))} {sentence}" for number, sentence in enumerate(notes.sentences, 1)]
    return "\n".join(lines) + "\n"


def _head(columns: list[Column], place: int) -> str:
    """The head of a column: with its group, unless the column before it has the same group."""
    column = columns[place]
    if not column.group or (place and columns[place - 1].group == column.group):
        return column.head
    return ", ".join(part for part in (column.group, column.head) if part)


def _mark(number: str) -> str:
    return number.translate(_SUPERSCRIPTS)
