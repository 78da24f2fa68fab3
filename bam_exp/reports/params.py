"""`bam-tables params`: what the networks of the tables cost, counted on the meta device, beside the paper's figures."""

import csv
import sys
from collections.abc import Sequence

from bam_exp.reports.counts import Counts, compare
from bam_exp.tables import load_table


def params(table_names: Sequence[str], form: str) -> int:
    """Print parameters and multiply-accumulates beside the paper's; 1 if one differs that no note names, else 0."""
    loaded = [load_table(name) for name in table_names]
    counted_already: Counts = {}
    counts = dict.fromkeys(("yes", "noted", "no", "unexpected"), 0)
    reasons = []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        writer.writerow(["table", "row", "params", "macs", "paper_params", "paper_gflops", "agrees"])
    for table in loaded:
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
        if any(row.counting for table in loaded for row in table.rows):
            print(
                "\n* the paper counts differently: CIFAR networks with a head of 1,000 classes, SqueezeNet with the additions of"
            )
            print("  its biases (docs/faithfulness.md)")
        if reasons:
            print("\nFigures that differ, and why:\n" + "\n".join(f"  {reason}" for reason in reasons))
        print(
            f"\n{sum(counts.values())} printed figures: {counts['yes']} equal to the printed precision, "
            f"{counts['noted']} noted as different, {counts['no'] + counts['unexpected']} against expectation"
        )
    return 1 if counts["no"] or counts["unexpected"] else 0


def _mark(verdict: str | None) -> str:
    return {None: "", "yes": "equal", "no": "DIFFERS", "noted": "noted", "unexpected": "EQUAL (noted)"}[verdict]
