"""`bam-tables params`: what the networks of the tables cost, counted on the meta device, beside the print."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

import torch
from omegaconf import DictConfig

from bam_exp.commands.tables import Row, Table, load
from bam_exp.complexity import Complexity, complexity
from bam_exp.config.choices import ConfigError, composing
from bam_exp.runs.run import build

Counts = dict[str, Complexity]
"""What has been counted already: tables share networks."""


def row_complexity(row: Row, *, as_printed: bool = False) -> Complexity:
    """Parameters and multiply-accumulates of a row's network on the meta device; `as_printed` counts as the table's GFLOPs do."""
    return _count(row.config(), row.counting if as_printed else {}, {})


def _count(cfg: DictConfig, counting: Mapping[str, Any], counts: Counts) -> Complexity:
    key = str([cfg.data, cfg.backbone, cfg.attention, counting])
    if key not in counts:
        with torch.device("meta"):
            data, network, _ = build(cfg, classes=counting.get("classes"))
        counts[key] = complexity(network, data.size, count_bias=counting.get("bias", False))
    return counts[key]


def agrees(printed: str, ours: int) -> bool:
    """Whether a count rounds to the printed figure, at the printed precision (`24.07M`, `1.22` in units of 10^9)."""
    try:
        number = Decimal(printed.removesuffix("M"))
    except InvalidOperation as error:
        raise ConfigError(f"{printed}: should be a figure as the paper prints it, as 24.07M or 1.22") from error
    unit = Decimal(10) ** (6 if printed.endswith("M") else 9)
    return (Decimal(ours) / unit).quantize(number, rounding=ROUND_HALF_UP) == number


def row_cost(row: Row, overrides: Sequence[str]) -> tuple[Complexity, int]:
    """Complexity of a row under other overrides, and the images of an epoch."""
    with torch.device("meta"):
        data, network, _ = build(row.config([word for word in overrides if not word.startswith("seed=")]))
    return complexity(network, data.size), int(data.train_size)


@dataclass(frozen=True)
class Compared:
    """One row's counts beside the print."""

    row: Row
    ours: Complexity
    macs_as_printed: int

    def count(self, figure: str) -> int:
        """Our count for a figure of the table."""
        return self.ours.params if figure == "params" else self.macs_as_printed

    @property
    def verdicts(self) -> dict[str, str]:
        """Of each figure that is counted and printed: `yes`, `no`, `noted` (differs, as the table's notes say it would) or
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
        cfg = row.config()
        yield Compared(row, _count(cfg, {}, counts), _count(cfg, row.counting, counts).macs)


def params(table_names: Sequence[str], form: str) -> int:
    """Print parameters and multiply-accumulates beside the paper's; 1 if one differs that no note names, else 0."""
    with composing():
        return _params(table_names, form)


def _params(table_names: Sequence[str], form: str) -> int:
    loaded = [load(name) for name in table_names]
    counted = [table for table in loaded if table.task == "classification"]
    counted_already: Counts = {}
    counts = dict.fromkeys(("yes", "noted", "no", "unexpected"), 0)
    reasons = []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        writer.writerow(["table", "row", "params", "macs", "paper_params", "paper_gflops", "agrees"])
    for table in counted:
        if form == "text":
            print(f"\n{table.title}\n  {'row':<24}{'params':>14}{'paper':>9} {'':<10}{'GMACs':>9}{'paper':>8}")
        for one in compare(table, counted_already):
            verdicts, paper, row = one.verdicts, one.row.paper, one.row
            for figure, verdict in verdicts.items():
                counts[verdict] += 1
                if verdict != "yes":
                    reason = row.notes.get(figure, "no note names it")
                    reasons.append(
                        f"{table.name} {row.name} {figure}: printed {paper[figure]}, counted {one.count(figure):,}: {reason}"
                    )
            if form == "csv":
                worst = next(
                    (verdict for verdict in ("no", "unexpected", "noted", "yes") if verdict in verdicts.values()), ""
                )
                printed = [paper.get("params", ""), paper.get("gflops", "")]
                writer.writerow([table.name, row.name, one.ours.params, one.ours.macs, *printed, worst])
            else:
                star = "*" if one.macs_as_printed != one.ours.macs and "gflops" in verdicts else ""
                print(
                    f"  {row.name:<24}{one.ours.params:>14,}{paper.get('params', ''):>9} {_mark(verdicts.get('params')):<10}"
                    f"{one.ours.macs / 1e9:>9.4f}{paper.get('gflops', ''):>8} {_mark(verdicts.get('gflops'))}{star}".rstrip(),
                    flush=True,
                )
    if form == "text":
        if any(row.counting for table in counted for row in table.rows):
            print(
                "\n* the print counts otherwise: CIFAR networks with a head of 1,000 classes, SqueezeNet with the additions of"
            )
            print("  its biases (docs/faithfulness.md)")
        if reasons:
            print("\nFigures that differ, and why:\n" + "\n".join(f"  {reason}" for reason in reasons))
        print(
            f"\n{sum(counts.values())} printed figures: {counts['yes']} equal to the print's precision, "
            f"{counts['noted']} differ as noted, {counts['no'] + counts['unexpected']} against expectation"
            + "".join(f"; {table.name}: detectors, not counted" for table in loaded if table not in counted)
        )
    return 1 if counts["no"] or counts["unexpected"] else 0


def _mark(verdict: str | None) -> str:
    return {None: "", "yes": "equal", "no": "DIFFERS", "noted": "noted", "unexpected": "EQUAL (noted)"}[verdict]
