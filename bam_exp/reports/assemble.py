"""Making the value of a report from a table, the store and the counts of its networks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from bam_exp.config import NAMED
from bam_exp.figures import FIGURES
from bam_exp.reports.answers import Answers
from bam_exp.reports.counts import Counts
from bam_exp.reports.facts import RowFacts, row_counts
from bam_exp.reports.lines import RowLines, StoreIndex, Variant, lines_of
from bam_exp.reports.report import COUNTED, Cell, Report, ReportRow
from bam_exp.reports.statistics import McNemar, gain_over, holm, mcnemar, mean_interval
from bam_exp.tables import Row, Table


@dataclass(frozen=True)
class Sources:
    """The sources from which reports are made."""

    index: StoreIndex
    answers: Answers
    counts: Counts = field(default_factory=dict)
    """The counts so far; tables share networks."""


def make_report(table: Table, facts: Sequence[RowFacts], variant: Variant, sources: Sources) -> Report:
    """The report of a table, or of a variant of it; `facts` are those of the table's rows, in order."""
    lines, unchecked = lines_of(table, facts, variant, sources.index)
    rows = []
    for row, of_row, runs in zip(table.rows, facts, lines, strict=True):
        counted = (
            _counted_in_store(table, row, runs) if "data" in variant else _counted(table, row, of_row, sources.counts)
        )
        cells = {**counted, **_measured(table, row, runs)}
        rows.append(
            ReportRow(
                row.name,
                row.label,
                runs.names,
                of_row.attention,
                {name: cells[name] for name in table.columns},
                runs.lines,
                note=_mixed(runs),
                outdated=runs.outdated,
            )
        )
    remarks = [remark for runs in lines for remark in runs.remarks]
    rows = _with_pairs(_with_gains(rows, table.metric), sources.answers)
    return Report(table, variant, rows, list(dict.fromkeys(remarks)), unchecked)


def _counted(table: Table, row: Row, facts: RowFacts, counts: Counts) -> dict[str, Cell]:
    names = [name for name in table.columns if name in COUNTED]
    if not names:
        return {}
    own, as_printed = row_counts(row, facts, counts)
    ours = {"params": own.params, "gflops": as_printed.macs}
    return {name: Cell(FIGURES[name], row.paper.get(name), ours[name], note=row.notes.get(name, "")) for name in names}


def _counted_in_store(table: Table, row: Row, runs: RowLines) -> dict[str, Cell]:
    """The counts that runs on other data recorded: with other classes or image sizes the network is another one."""
    ours: dict[str, float | None] = {"params": None, "gflops": None}
    if runs.lines:
        line = runs.lines[0]
        ours = {
            name: float(line[key]) if line[key] else None for name, key in (("params", "params"), ("gflops", "macs"))
        }
    return {name: Cell(FIGURES[name], row.paper.get(name), ours[name]) for name in table.columns if name in COUNTED}


def _measured(table: Table, row: Row, runs: RowLines) -> dict[str, Cell]:
    cells = {}
    for name in table.columns:
        if name not in COUNTED:
            values = runs.values(name)
            cells[name] = Cell(
                FIGURES[name],
                row.paper.get(name),
                mean(values) if values else None,
                values,
                mean_interval(values) if values else None,
                row.notes.get(name, ""),
            )
    return cells


def _mixed(runs: RowLines) -> str:
    """A note on a row whose runs were computed in different precisions, or an empty string."""
    precisions = [line["precision"] for line in runs.lines]
    if len(set(precisions)) < 2:
        return ""
    counted = ", ".join(f"{precisions.count(precision)} in {precision}" for precision in sorted(set(precisions)))
    return f"a mean over runs of different precision: {counted}"


def _with_gains(rows: Sequence[ReportRow], metric: str) -> list[ReportRow]:
    """The rows with their gains over their baselines, and p-values corrected for all of them."""
    baselines: dict[tuple[str, ...], ReportRow] = {}
    for row in rows:
        if row.names["attention"] == "none":
            baselines.setdefault(_network(row), row)
    lower = FIGURES[metric].better == "lower"
    with_gains = []
    for row in rows:
        base = baselines.get(_network(row))
        if base is None or row.names["attention"] == "none":
            with_gains.append(row)
            continue
        ours, theirs = row.cells[metric].values, base.cells[metric].values
        gain = gain_over(theirs, ours, lower_is_better=lower) if ours and theirs else None
        with_gains.append(replace(row, baseline=base.name, gain=gain, note=row.note or _unlike(row, base)))
    tested = [row for row in with_gains if row.gain is not None and row.gain.p is not None]
    distinct = {
        (row.names["backbone"], row.names["attention"]): row for row in tested
    }  # a table may print one run twice
    p_values = [row.gain.p for row in distinct.values() if row.gain is not None and row.gain.p is not None]
    corrected = dict(zip(distinct, holm(p_values), strict=True))
    return [
        replace(row, gain=replace(row.gain, p_holm=corrected[row.names["backbone"], row.names["attention"]]))
        if row.gain is not None and row.gain.p is not None
        else row
        for row in with_gains
    ]


def _with_pairs(rows: Sequence[ReportRow], answers: Answers) -> list[ReportRow]:
    """The rows with a paired test where row and baseline have a single run, of the same seed, whose answers are known."""
    named = {row.name: row for row in rows}
    return [replace(row, paired=_paired(row, named[row.baseline], answers)) if row.baseline else row for row in rows]


def _paired(row: ReportRow, base: ReportRow, answers: Answers) -> McNemar | None:
    if row.n != 1 or base.n != 1:
        return None
    ours, theirs = row.lines[0], base.lines[0]
    if any(ours[key] != theirs[key] for key in ("seed", "test_images")):
        return None
    bits, base_bits = answers.of(ours), answers.of(theirs)
    return mcnemar(bits, base_bits, int(ours["test_images"])) if bits and base_bits else None


def _network(row: ReportRow) -> tuple[str, ...]:
    return tuple(row.names[group] for group in NAMED if group != "attention")


def _unlike(row: ReportRow, base: ReportRow) -> str:
    """A note on a gain between runs of different precision or of different versions, or an empty string."""
    ours, theirs = ({line["precision"] for line in one.lines} for one in (row, base))
    if not ours or not theirs:
        return ""
    if ours != theirs:
        own, other = (", ".join(sorted(precisions)) for precisions in (ours, theirs))
        return f"computed in {own}, its baseline in {other}: the gain is not of the attention alone"
    if row.outdated != base.outdated:
        return "it or its baseline has figures of an earlier version: the gain is not of the attention alone"
    return ""
