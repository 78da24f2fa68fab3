"""The lines of the store that belong to a table: those of each row, and the variants with another recipe or other data."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bam_exp.config import NAMED
from bam_exp.errors import ConfigError
from bam_exp.reports.facts import RowFacts, row_facts
from bam_exp.runs import store
from bam_exp.runs.store import Line, name_of
from bam_exp.tables import Table

Variant = Mapping[str, str]
"""Group (`data`, `recipe`) to the name that takes the place of the table's own; empty for the table itself."""

_VARIED = ("data", "recipe")


class StoreIndex:
    """The lines of a store by the names of their runs, apart from the seed."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.by_names: dict[tuple[str, ...], list[Line]] = {}
        for line in lines:
            self.by_names.setdefault(tuple(line[group] for group in NAMED), []).append(line)

    def of(self, names: Mapping[str, str]) -> Sequence[Line]:
        """The lines of the runs with these names, by seed."""
        return self.by_names.get(tuple(names[group] for group in NAMED), ())

    def variants(self, rows: Sequence[RowFacts]) -> list[Variant]:
        """The other data or recipes with which something that stands in these rows has been run."""
        own: dict[tuple[str, str], list[Mapping[str, str]]] = {}
        for row in rows:
            own.setdefault((row.names["backbone"], row.names["attention"]), []).append(row.names)
        variants: list[Variant] = []
        for key in self.by_names:
            names = dict(zip(NAMED, key, strict=True))
            changes = [
                {group: names[group] for group in _VARIED if names[group] != of_row[group]}
                for of_row in own.get((names["backbone"], names["attention"]), ())
            ]
            if changes and all(changes) and (variant := min(changes, key=len)) not in variants:
                variants.append(variant)
        return variants

    def overrides_of(self, variant: Variant) -> list[str]:
        """The overrides that select a variant, from the command of one of its runs."""
        line = next(
            lines[0]
            for key, lines in self.by_names.items()
            if variant.items() <= dict(zip(NAMED, key, strict=True)).items()
        )
        wanted = tuple(f"{group}{mark}" for group in variant for mark in "=.")
        return [word for word in shlex.split(line["command"]) if word.startswith(wanted)]


@dataclass(frozen=True)
class RowLines:
    """The finished runs of a row, one for each seed, and remarks on those that are not among them."""

    names: Mapping[str, str]
    lines: list[Line] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)
    """The reasons why this version would measure other figures than those of an earlier one."""

    def values(self, figure: str) -> list[float]:
        """A figure of each run that has it."""
        return [float(line[figure]) for line in self.lines if line.get(figure)]


def own_lines(facts: RowFacts, index: StoreIndex) -> RowLines:
    """The runs of a row whose settings are those of its config."""
    standing, remarks = store.lines_of(facts.run, index.of(facts.names))
    outdated = list(dict.fromkeys(reason for _, reason in standing if reason))
    return RowLines(facts.names, [dict(line) for line, _ in standing], remarks, outdated)


def unchecked_lines(names: Mapping[str, str], index: StoreIndex) -> RowLines:
    """The newest run of each seed under these names, for settings that no config has any more."""
    row = RowLines(names)
    newest: dict[str, Line] = {}
    for line in sorted(index.of(names), key=lambda line: line["end"]):
        newest[line["seed"]] = line
    for line in sorted(newest.values(), key=lambda line: int(line["seed"])):
        if line["error"]:
            row.remarks.append(f"FAILED: {name_of(line)}: {line['error']}")
        else:
            row.lines.append(line)
    return row


def lines_of(
    table: Table, facts: Sequence[RowFacts], variant: Variant, index: StoreIndex
) -> tuple[list[RowLines], str]:
    """For each row of a table its runs, and a remark if they cannot be checked against a config (else an empty string)."""
    if variant:
        names = [{**of_row.names, **variant} for of_row in facts]
        extra = index.overrides_of(variant)
        try:
            facts = [row_facts(row, extra) for row in table.rows]
        except ConfigError as error:
            reason = str(error).partition(" (")[0].partition(";")[0]
            unchecked = f"Taken from the store unchecked, the newest run of each seed: {reason}."
            return [unchecked_lines(of_row, index) for of_row in names], unchecked
    return [own_lines(of_row, index) for of_row in facts], ""
