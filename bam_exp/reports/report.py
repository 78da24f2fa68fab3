"""Tables from finished runs: results/runs.csv is the store, a report is a table with our numbers beside the paper's."""

import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
from filelock import FileLock

from bam_exp.figures import FIGURES
from bam_exp.files import clear_parts, write_atomically
from bam_exp.runs import Run, run_of
from bam_exp.runs.store import collect, lines_of
from bam_exp.tables import NOT_TRAINED, Row, Table, load_table

_VARIED = ("data", "recipe")


def main(table_names: Sequence[str], output_dir: str) -> int:
    """Collect finished runs, write and print the reports of these tables; 0 if every one was written."""
    results = Path(output_dir) / "results"
    results.mkdir(parents=True, exist_ok=True)
    with FileLock(results / ".lock"):
        clear_parts(results)
        runs = collect(Path(output_dir))
        for name in table_names:
            table = load_table(name)
            if table.task in NOT_TRAINED:
                print(f"{name}: a table of detectors, which this version declares but does not train")
                continue
            for variant in [{}, *_variants(table, runs)]:
                made = _report(table, runs, variant)
                if not variant and len(table_names) > 1 and not made.finished:
                    continue
                stem = "--".join([name, *variant.values()])
                write_atomically(results / f"{stem}.md", made.markdown)
                write_atomically(results / f"{stem}.csv", made.csv)
                kinds = ".csv"
                if made.finished:
                    write_atomically(results / f"{stem}.png", made.chart())
                    kinds = ".csv, .png"
                print(f"{made.markdown}\n({results / f'{stem}.md'}, {kinds})\n")
    return 0


def _variants(table: Table, runs: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """With what other data or recipe than the table's own something that stands in it has been run: group to name."""
    rows = [run_of(row, 0) for row in table.rows]
    cells = {(run.names["backbone"], run.names["attention"]) for run in rows}
    own = rows[0].names
    found = []
    for line in runs:
        variant = {group: line[group] for group in _VARIED if line[group] != own[group]}
        if variant and (line["backbone"], line["attention"]) in cells and variant not in found:
            found.append(variant)
    return found


class _Report:
    """A table with what was measured: markdown for a person, csv for a program."""

    def __init__(self, table: Table, variant: Mapping[str, str]) -> None:
        self.table, self.variant = table, variant
        self.lines: list[dict[str, str]] = []
        self.cells: list[dict[str, str]] = []
        self.used: list[Mapping[str, str]] = []
        self.points: list[tuple[str, list[float], float | None]] = []
        self.remarks: list[str] = []
        self.outdated: dict[str, list[str]] = {}
        """Why figures of an earlier version are not what this version would measure, to the rows that have such figures."""

    @property
    def finished(self) -> int:
        """How many runs stand in it."""
        return len(self.used)

    def add(self, row: Row, run: Run, runs: Iterable[Mapping[str, str]]) -> None:
        """One row: its finished runs of all seeds, the paper's figures, the difference."""
        errors, params = [], None
        lines, remarks = lines_of(run, runs)
        self.remarks += remarks
        for line, outdated in lines:
            errors.append(float(line[self.table.metric]))
            params = line["params"]
            if line not in self.used:  # a table may print one run twice
                self.used.append(line)
            if outdated and row.label not in self.outdated.setdefault(outdated, []):
                self.outdated[outdated].append(row.label)
        printed = row.paper.get(self.table.metric, "")
        self.points.append((row.label, errors, float(printed) if printed else None))
        ours = f"{mean(errors):.2f}" if errors else ""
        spread = f"{stdev(errors):.2f}" if len(errors) > 1 else ""
        difference = f"{mean(errors) - float(printed):+.2f}" if errors and printed else ""
        self.lines.append(
            {"row": row.name, "label": row.label, "paper_params": row.paper.get("params", ""), "params": params or "",
             f"paper_{self.table.metric}": printed, self.table.metric: ours, "std": spread, "n": str(len(errors)),
             "difference": difference}
        )  # fmt: skip
        cells = {"": row.label}
        if "params" in self.table.columns:
            cells |= {
                "Params, paper": row.paper.get("params", "—"),
                "ours": f"{int(params) / 1e6:.3f}M" if params else "—",
            }
        head = FIGURES[self.table.metric].heading
        cells |= {
            f"{head}, paper": printed or "—",
            "ours ": (f"{ours} ± {spread}" if spread else ours) or "—",
            "n": str(len(errors) or "—"),
            "difference": difference or "—",
        }
        self.cells.append(cells)

    @property
    def csv(self) -> str:
        """One line a row, figures as plain numbers."""
        return pd.DataFrame(self.lines).to_csv(index=False, lineterminator="\n")

    @property
    def markdown(self) -> str:
        """The report for a person, with everything that belongs to its numbers."""
        others = " and ".join(f"{group} `{name}`" for group, name in self.variant.items())
        parts = [f"# {self.table.title}" + (f"; with {others}" if others else ""), ""]
        if others:
            parts += [f"Not the table itself: these runs have {others}, the table has not.", ""]
        columns = list(self.cells[0])
        if self.variant:
            columns.remove("difference")
        if not any(row.paper for row in self.table.rows):
            columns = [column for column in columns if "paper" not in column and column != "difference"]
            heads = {"ours": FIGURES["params"].heading, "ours ": FIGURES[self.table.metric].heading}
        else:
            heads = {}
        heads = {column: heads.get(column, column.strip()) for column in columns}
        widths = [max(len(heads[column]), *(len(cells[column]) for cells in self.cells)) for column in columns]
        parts.append(
            "| " + " | ".join(heads[column].ljust(width) for column, width in zip(columns, widths, strict=True)) + " |"
        )
        parts.append(
            "|" + "|".join(("-" * (width + 1) + (":" if index else "-")) for index, width in enumerate(widths)) + "|"
        )
        for cells in self.cells:
            texts = [
                cells[c].ljust(w) if i == 0 else cells[c].rjust(w)
                for i, (c, w) in enumerate(zip(columns, widths, strict=True))
            ]
            parts.append("| " + " | ".join(texts) + " |")
        parts += ["", *(f"- {line}" for line in [*self._provenance(), *self._notes()])]
        return "\n".join(parts) + "\n"

    def chart(self) -> bytes:
        """A PNG with a line for each row: its seeds, their mean, and the paper's figure where the table is the paper's."""
        from matplotlib.figure import Figure  # half a second, only for reports

        figure = Figure(figsize=(7, 1.2 + 0.32 * len(self.points)), layout="constrained")
        axes = figure.add_subplot()
        places = list(enumerate(self.points))
        seeds = [(error, place) for place, (_, errors, _) in places for error in errors]
        means = [(mean(errors), place) for place, (_, errors, _) in places if errors]
        printed = [(figure, place) for place, (*_, figure) in places if figure is not None and not self.variant]
        axes.plot(*zip(*seeds, strict=True), "o", color="tab:blue", alpha=0.5, markeredgewidth=0, label="a seed")
        axes.plot(*zip(*means, strict=True), "|", color="tab:blue", markersize=14, markeredgewidth=2, label="mean")
        if printed:
            axes.plot(*zip(*printed, strict=True), "D", color="tab:orange", markerfacecolor="none", label="paper")
        axes.set_yticks(range(len(self.points)), [label for label, *_ in self.points])
        axes.set_ylim(len(self.points) - 0.5, -0.5)
        axes.set_xlabel(FIGURES[self.table.metric].heading)
        axes.grid(axis="x", alpha=0.3)
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
        return file.getvalue()

    def _provenance(self) -> list[str]:
        if not self.used:
            return [f"No finished runs yet. To make them: `bam-train +experiment={self.table.name}`"]
        data = sorted({line["data"] for line in self.used})
        recipes = sorted({line["recipe"] for line in self.used})
        machines = sorted(
            {
                f"{line['device']} ({line['cpu']}, {line['threads']} thread{'s' * (line['threads'] != '1')}, {line['precision']})"
                for line in self.used
            }
        )
        commits = sorted(
            {(line["commit"] or "no checkout") + ("+changes" if line["dirty"] == "True" else "") for line in self.used}
        )
        return [
            "Ours: test error of the last epoch, mean ± standard deviation over n seeds; tested on "
            f"{' or '.join(sorted({line['test_images'] for line in self.used}))} images.",
            f"Data: {', '.join(data)}. Recipe: {', '.join(recipes)}. Runs: {len(self.used)}, on {'; '.join(machines)}; "
            f"PyTorch {', '.join(sorted({line['torch'] for line in self.used}))}; commit {', '.join(commits)}.",
        ]

    def _notes(self) -> list[str]:
        own = [
            f"{row.label}, {FIGURES[figure].heading}: {reason}"
            for row in self.table.rows
            for figure, reason in row.notes.items()
        ]
        measured = sum(bool(errors) for _, errors, _ in self.points)
        older = [
            f"Figures of an earlier version: {reason}. They stand in "
            f"{'every row that has figures' if len(rows) == measured else ', '.join(rows)}."
            for reason, rows in self.outdated.items()
        ]
        return [*self.remarks, *older, *self.table.remarks, *(f"{note[0].upper()}{note[1:]}" for note in own)]


def _report(table: Table, runs: Sequence[Mapping[str, str]], variant: Mapping[str, str]) -> _Report:
    made = _Report(table, variant)
    extra: list[str] = []
    if variant:
        line = next(line for line in runs if all(line[group] == name for group, name in variant.items()))
        wanted = tuple(f"{group}{mark}" for group in variant for mark in "=.")
        extra = [word for word in shlex.split(line["command"]) if word.startswith(wanted)]
    for row in table.rows:
        made.add(row, run_of(row, 0, extra), runs)
    return made
