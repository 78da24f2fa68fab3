"""Counting the networks of tables on the meta device, and comparing the counts with the paper's figures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

from bam_exp.complexity import Complexity, complexity
from bam_exp.config import Chosen, remembered
from bam_exp.errors import ConfigError
from bam_exp.runs import run_of
from bam_exp.tables import Row, Table

Counts = dict[str, Complexity]
"""The counts so far; tables share networks."""


def row_complexity(row: Row, *, as_printed: bool = False) -> Complexity:
    """Parameters and multiply-accumulates of a row's network; `as_printed` counts as the paper does for this table."""
    return count(run_of(row, 0).chosen, row.counting if as_printed else {}, {})


def count(chosen: Chosen, counting: Mapping[str, Any], counts: Counts) -> Complexity:
    """Count what was chosen, unless `counts` has it already; `counting` as in `Row`."""
    parts = [chosen.data.settings, chosen.backbone.settings, chosen.attention.settings, dict(counting)]
    key = str(parts)

    def counted() -> list[int]:
        from bam_exp.build import build_on_meta

        data, network, _ = build_on_meta(chosen, classes=counting.get("classes"))
        cost = complexity(network, data.size, count_bias=counting.get("bias", False))
        return [cost.params, cost.macs, cost.activations]

    if key not in counts:
        counts[key] = Complexity(*remembered("count", parts, counted))
    return counts[key]


def agrees(printed: str, ours: int) -> bool:
    """Whether a count rounds to the printed figure, at the printed precision (`24.07M`, `1.22` in units of 10^9)."""
    try:
        number = Decimal(printed.removesuffix("M"))
    except InvalidOperation as error:
        raise ConfigError(f"{printed}: should be a figure as the paper prints it, as 24.07M or 1.22") from error
    unit = Decimal(10) ** (6 if printed.endswith("M") else 9)
    return (Decimal(ours) / unit).quantize(number, rounding=ROUND_HALF_UP) == number


@dataclass(frozen=True)
class Compared:
    """The counts of one row beside the paper's figures."""

    row: Row
    ours: Complexity
    macs_as_printed: int

    def count(self, figure: str) -> int:
        """Our count for a figure of the table."""
        return self.ours.params if figure == "params" else self.macs_as_printed

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each counted and printed figure: `yes`, `no`, `noted` (differs, as the table's notes say it would) or
        `unexpected` (noted, but equal)."""
        found = {}
        for figure in ("params", "gflops"):
            if figure in self.row.paper:
                equal, noted = agrees(self.row.paper[figure], self.count(figure)), figure in self.row.notes
                found[figure] = ("unexpected" if noted else "yes") if equal else ("noted" if noted else "no")
        return found


def compare(table: Table, counts: Counts) -> Iterator[Compared]:
    """Count every row of a table of classifiers."""
    for row in table.rows:
        chosen = run_of(row, 0).chosen
        yield Compared(row, count(chosen, {}, counts), count(chosen, row.counting, counts).macs)
