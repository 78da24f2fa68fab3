"""`bam-tables report`: the files of reports in results/, made from finished runs; results/runs.csv is the store."""

import csv
import io
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from bam_exp.files import clear_parts, write_atomically
from bam_exp.reports import FORMATS
from bam_exp.reports.answers import Answers
from bam_exp.reports.assemble import Sources, make_report
from bam_exp.reports.drawn import drawn
from bam_exp.reports.facts import row_facts
from bam_exp.reports.html import html
from bam_exp.reports.latex import latex
from bam_exp.reports.lines import StoreIndex
from bam_exp.reports.markdown import markdown
from bam_exp.reports.report import Cell, Report, ReportRow
from bam_exp.reports.state import state_line, state_page
from bam_exp.runs.store import collect
from bam_exp.tables import load_table, table_names


def main(
    names: Sequence[str],
    output_dir: str,
    *,
    formats: Collection[str] = FORMATS,
    every: bool = False,
    only: Collection[Mapping[str, str]] = (),
) -> int:
    """Collect finished runs, write and print the reports of these tables; 0 if every one was written.

    Args:
        names: the tables; none stands for all that have finished runs.
        every: write results/README.md, the state of every table, too.
        only: the names of the runs whose reports are printed; all are, if there are none.
    """
    results = Path(output_dir) / "results"
    results.mkdir(parents=True, exist_ok=True)
    with FileLock(results / ".lock"):
        clear_parts(results)
        store = collect(Path(output_dir))
        for reason in store.unusable:
            print(f"not in any table: {reason}", file=sys.stderr)
        sources = Sources(StoreIndex(store), Answers(Path(output_dir)))
        states, variants = [], []
        for name in table_names() if every else names or table_names():
            table = load_table(name)
            facts = [row_facts(row) for row in table.rows]
            for variant in [{}, *sources.index.variants(facts)]:
                report = make_report(table, facts, variant, sources)
                if variant:
                    variants.append(report)
                elif every:
                    states.append(state_line(table, facts, report, sources))
                if name not in names and not report.used:
                    continue
                written = _write(report, Path(output_dir), formats)
                if not only or any(_stands_in(run, report) for run in only):
                    print(f"{markdown(report)}\n{results}: {', '.join(written)}\n")
        if every:
            write_atomically(results / "README.md", state_page(states, variants))
            print(f"{results / 'README.md'}: the state of every table")
    return 0


def _stands_in(run: Mapping[str, str], report: Report) -> bool:
    return any(row.names == run for row in report.rows)


def _write(report: Report, output_dir: Path, formats: Collection[str]) -> list[str]:
    """Write a report in these formats; the endings of the files."""
    results = output_dir / "results"
    writers: dict[str, Callable[[Report], str]] = {"md": markdown, "csv": csv_text, "tex": latex}
    contents: dict[str, str | bytes] = {
        f"{report.stem}.{ending}": text(report) for ending, text in writers.items() if ending in formats
    }
    if "html" in formats or "plots" in formats:
        pictures = drawn(report, output_dir)
        if "html" in formats:
            maps = results / "plots" / f"{report.stem}-maps.png"
            contents[f"{report.stem}.html"] = html(report, pictures, maps.read_bytes() if maps.is_file() else None)
        if "plots" in formats and pictures:
            (results / "plots").mkdir(exist_ok=True)
            for name, picture in pictures.items():
                contents[f"plots/{report.stem}-{name}.png"] = picture.png
                contents[f"plots/{report.stem}-{name}.svg"] = picture.svg
    for name, content in contents.items():
        write_atomically(results / name, content)
    return list(contents)


def csv_text(report: Report) -> str:
    """A report for a program: one line a row, figures as plain numbers, empty where there is none."""
    records = [_record(report, row) for row in report.rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _record(report: Report, row: ReportRow) -> dict[str, str]:
    """A row of the CSV: the columns of the table, the statistics of the figure that it is compared by, those of the others."""
    record = {"row": row.name, "label": row.label}
    for name in [*report.counted, *report.measured]:
        cell = row.cells[name]
        record |= {f"paper_{name}": cell.paper or "", name: _plain(cell)}
    record |= {**_spread(row.cells[report.metric]), "n": str(row.n)}
    record["difference"] = _signed(None if report.variant else row.cells[report.metric].difference)
    gain = row.gain
    interval = None if gain is None else gain.interval
    record |= {
        "gain": _signed(None if gain is None else gain.value),
        "gain_low": _signed(None if interval is None else interval.low),
        "gain_high": _signed(None if interval is None else interval.high),
        "p": "" if gain is None or gain.p is None else f"{gain.p:.4f}",
        "p_holm": "" if gain is None or gain.p_holm is None else f"{gain.p_holm:.4f}",
    }
    for name in report.measured[1:]:
        more = {
            **_spread(row.cells[name]),
            "difference": _signed(None if report.variant else row.cells[name].difference),
        }
        record |= {f"{name}_{key}": value for key, value in more.items()}
    return record


def _plain(cell: Cell) -> str:
    if cell.ours is None:
        return ""
    if cell.values:
        return f"{cell.ours:.2f}"
    return f"{cell.ours / 1e9:.4f}" if cell.figure.name == "gflops" else str(int(cell.ours))


def _spread(cell: Cell) -> dict[str, str]:
    return {
        "std": "" if cell.deviation is None else f"{cell.deviation:.2f}",
        "ci95": "" if cell.interval is None else f"{cell.interval.half_width:.2f}",
    }


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+z.2f}"
