"""A report: a table with our figures beside the paper's, as a value from which every output format is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from bam_exp.figures import Figure
from bam_exp.reports.counts import agrees
from bam_exp.reports.lines import Variant
from bam_exp.reports.statistics import Gain, Interval, McNemar
from bam_exp.runs.store import Line
from bam_exp.tables import Table

COUNTED = ("params", "gflops")
"""The figures that are counted, not measured."""


@dataclass(frozen=True)
class Cell:
    """One figure of one row."""

    figure: Figure
    paper: str | None
    """As the paper prints it."""
    ours: float | None = None
    """The count, in units of one, or the mean over the seeds."""
    values: Sequence[float] = ()
    """The figures of each seed."""
    interval: Interval | None = None
    """The 95 % interval of the mean."""
    note: str = ""

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, of a measured figure."""
        if self.ours is None or self.paper is None or not self.values:
            return None
        return self.ours - float(self.paper)

    @property
    def agrees(self) -> bool:
        """Whether a count equals the paper's to its last digit; True where the paper prints none."""
        return self.paper is None or self.ours is None or agrees(self.paper, int(self.ours))


@dataclass(frozen=True)
class ReportRow:
    """One row of a report."""

    name: str
    label: str
    names: Mapping[str, str]
    """The names of its runs: group to the choice and what was changed."""
    attention: Mapping[str, object]
    """The arguments of its attention."""
    cells: Mapping[str, Cell]
    """Figure to cell, in the order of the table's columns."""
    lines: Sequence[Line]
    """The finished runs, by seed."""
    baseline: str | None = None
    """The name of the row with the same network without attention."""
    gain: Gain | None = None
    """Over the baseline, in the figure by which the table compares."""
    paired: McNemar | None = None
    """The answers of its only run against those of the baseline's only run, where both have the same seed."""
    note: str = ""
    """On its runs as a whole."""
    outdated: Sequence[str] = ()
    """The reasons why this version would measure other figures than those of an earlier one."""

    @property
    def n(self) -> int:
        """The number of finished runs."""
        return len(self.lines)


@dataclass(frozen=True)
class Report:
    """A table with what was measured."""

    table: Table
    variant: Variant
    rows: Sequence[ReportRow]
    remarks: Sequence[str]
    """On runs that are not in the table, and on the variant."""
    unchecked: str = ""
    """The reason why the settings of a variant's runs could not be checked; empty if they were."""

    @property
    def metric(self) -> str:
        """The figure by which the rows are compared."""
        return self.table.metric

    @property
    def measured(self) -> list[str]:
        """The measured figures that the table declares, the one by which it compares first."""
        return [self.metric, *(name for name in self.table.columns if name not in (*COUNTED, self.metric))]

    @property
    def counted(self) -> list[str]:
        """The counted figures that the table declares."""
        return [name for name in self.table.columns if name in COUNTED]

    @property
    def used(self) -> list[Line]:
        """The runs that stand in it, each once although a table may print one run twice."""
        return list({(line["fingerprint"]): line for row in self.rows for line in row.lines}.values())

    @property
    def has_paper(self) -> bool:
        """Whether the table is one of the paper's."""
        return any(row.paper for row in self.table.rows)

    def full_label(self, row: ReportRow) -> str:
        """A row's label, after that of its baseline where it only says what is added and the table has several baselines."""
        labels = {other.name: other.label for other in self.rows}
        several = sum(other.names["attention"] == "none" for other in self.rows) > 1
        if several and row.label.startswith("+") and row.baseline is not None:
            return f"{labels[row.baseline]} {row.label}"
        return row.label

    @property
    def gains(self) -> list[Gain]:
        """The gains that are known."""
        return [row.gain for row in self.rows if row.gain is not None]

    @property
    def title(self) -> str:
        """The table's title; of a variant its short name and what differs."""
        if not self.variant:
            return self.table.title
        changed = " and ".join(f"{group} `{name}`" for group, name in self.variant.items())
        return f"{self.table.title.partition(':')[0]} with {changed}"

    @property
    def stem(self) -> str:
        """The name of the report's files, without the ending."""
        return "--".join([self.table.name, *self.variant.values()])
