"""Published tables and their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bam_exp.config import Chosen, compose


@dataclass(frozen=True)
class Row:
    """One row of a table: what the paper prints, and the overrides that select it."""

    table: str
    name: str
    label: str
    paper: Mapping[str, str]
    """Figure to the value as printed."""
    set: Mapping[str, Any]
    """`base` of the table and `set` of the row together."""
    counting: Mapping[str, Any]
    """The paper's way of counting GFLOPs if it is not the network's own: for a head of other `classes`, with `bias`."""
    notes: Mapping[str, str]
    """Figure to the reason why ours is expected to differ from the printed one."""

    @property
    def override(self) -> str:
        """The override of bam-train that selects this row."""
        return f"+row/{self.table}={self.name}"

    def chosen(self, extra: Sequence[str] = ()) -> Chosen:
        """The choices of the row; `extra` overrides take precedence.

        Raises:
            ConfigError: if an override does not fit.
        """
        return Chosen.of(compose([self.override, *extra]))


@dataclass(frozen=True)
class Table:
    """A published table."""

    name: str
    title: str
    task: str
    """The name of a task of `bam_exp.tasks`."""
    metric: str
    """The figure by which its rows are compared."""
    columns: Sequence[str]
    """The figures that it shows."""
    seeds: Sequence[int]
    rows: Sequence[Row]
    remarks: Sequence[str]
    """Notes on the table as a whole."""
