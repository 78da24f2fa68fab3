"""The facts of a table's row that are known before anything is trained: names, identity and counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bam_exp.complexity import Complexity
from bam_exp.reports.counts import Counts, count
from bam_exp.runs import Run, run_of
from bam_exp.tables import Row


@dataclass(frozen=True)
class RowFacts:
    """The runs of a row, apart from their seeds."""

    run: Run
    """The run of seed 0."""
    attention: Mapping[str, Any]
    """The arguments of the attention, those left at their defaults too."""

    @property
    def names(self) -> Mapping[str, str]:
        """Group to the choice and what was changed, as in the runs' folders."""
        return self.run.names


def row_facts(row: Row, extra: Sequence[str] = ()) -> RowFacts:
    """The facts of a row; `extra` overrides take precedence.

    Raises:
        ConfigError: if the row cannot be run with these overrides.
    """
    run = run_of(row, 0, extra)
    attention = run.chosen.attention
    return RowFacts(run, {**attention.defaults, **attention.arguments})


def row_counts(row: Row, facts: RowFacts, counts: Counts) -> tuple[Complexity, Complexity]:
    """Parameters and multiply-accumulates of a row: of the network as it is trained, and as the paper counts for its table."""
    chosen = facts.run.chosen
    return count(chosen, {}, counts), count(chosen, row.counting, counts)
