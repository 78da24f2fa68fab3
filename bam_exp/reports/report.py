"""Tables from finished runs: results/runs.csv is the store, a report is a table with our numbers beside the paper's."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd
from filelock import FileLock

from bam_exp.commands import tables
from bam_exp.commands.tables import FIGURES, Row, Table
from bam_exp.config.choices import ConfigError
from bam_exp.files import clear_parts, write_atomically
from bam_exp.runs.run import NAMED, Run

_METRICS = ("top1_error", "top5_error", "test_loss", "train_loss", "best_top1_error", "best_epoch", "test_images")
_HARDWARE = ("device", "cpu", "threads", "precision")
_VARIED = ("data", "recipe")
COLUMNS = (
    *NAMED, "seed", *_METRICS, "params", "macs", *_HARDWARE, "seconds_per_epoch", "peak_memory_mib",
    "torch", "commit", "dirty", "fingerprint", "start", "end", "command", "error",
)  # fmt: skip
"""Of results/runs.csv: one line a run; a failed one has its reason in `error` and no figures."""


def main(table_names: Sequence[str], output_dir: str) -> int:
    """Collect finished runs, write and print the reports of these tables; 0 if every one was written."""
    results = Path(output_dir) / "results"
    results.mkdir(parents=True, exist_ok=True)
    with FileLock(results / ".lock"):
        clear_parts(results)
        runs = collect(Path(output_dir))
        for name in table_names:
            table = tables.load(name)
            if table.task != "classification":
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


def collect(output_dir: Path, *, write: bool = True) -> list[dict[str, str]]:
    """The lines of results/runs.csv, after adding what the runs folder has; who writes holds the lock of results.

    Raises:
        ConfigError: if runs.csv is not such a file.
    """
    path = output_dir / "results" / "runs.csv"
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    if path.is_file():
        try:
            stored = pd.read_csv(path, dtype=str, keep_default_na=False)
            missing = set(COLUMNS) - set(stored.columns)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a table of runs ({error})") from error
        if missing:
            raise ConfigError(f"{path}: not a table of runs (no column {min(missing)})")
        for record in stored.to_dict("records"):
            lines[_key(record)] = {str(key): str(value) for key, value in record.items()}
    for folder in sorted(
        {
            file.parent
            for kind in ("result", "error")
            for file in (output_dir / "runs").glob(f"*/*/*/*/seed*/{kind}.json")
        }
    ):
        line = _line(folder)
        if line is not None and not (line["error"] and _key(line) in lines):  # a failure never replaces figures
            lines[_key(line)] = line
    ordered = [lines[key] for key in sorted(lines)]
    if ordered and write:
        text = pd.DataFrame(ordered, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n")
        if not path.is_file() or path.read_text() != text:
            write_atomically(path, text)
    return ordered


def _key(line: Mapping[Any, Any]) -> tuple[str, ...]:
    return (*(str(line[group]) for group in NAMED), f"{int(line['seed']):010}", str(line["fingerprint"]))


def _line(folder: Path) -> dict[str, str] | None:
    """A run's folder as a line of runs.csv; None for one that is neither finished nor failed."""
    try:
        begun = json.loads((folder / "run.json").read_text())
        if (folder / "result.json").is_file():
            result = json.loads((folder / "result.json").read_text())
        else:
            result = {"error": json.loads((folder / "error.json").read_text())["reason"], **begun}
    except (OSError, ValueError, KeyError):
        return None
    names = dict(zip((*NAMED, "seed"), folder.parts[-5:], strict=True))
    flat: dict[str, Any] = {
        **result,
        **result.get("metrics", {}),
        **result.get("hardware", {}),
        "torch": result.get("versions", {}).get("torch"),
        **names,
        "seed": names["seed"].removeprefix("seed"),
    }
    return {column: _text(flat.get(column)) for column in COLUMNS}


def _text(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _variants(table: Table, runs: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """With what other data or recipe than the table's own something that stands in it has been run: group to name."""
    rows = [row.run(0) for row in table.rows]
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

    @property
    def finished(self) -> int:
        """How many runs stand in it."""
        return len(self.used)

    def add(self, row: Row, run: Run, runs: Iterable[Mapping[str, str]]) -> None:
        """One row: its finished runs of all seeds, the paper's figures, the difference."""
        errors, params = [], None
        for line in runs:
            if any(line[group] != run.names[group] for group in NAMED):
                continue
            name = "/".join([*(line[group] for group in NAMED), f"seed{line['seed']}"])
            if line["fingerprint"] != run.with_seed(int(line["seed"])).fingerprint:
                self.remarks.append(f"Stale, not in the table: {name} was run with other settings than this version's.")
            elif line["error"]:
                self.remarks.append(f"FAILED: {name}: {line['error']}")
            else:
                errors.append(float(line[self.table.metric]))
                params = line["params"]
                if line not in self.used:  # a table may print one run twice
                    self.used.append(line)
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
        head = FIGURES[self.table.metric]
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
            heads = {"ours": FIGURES["params"], "ours ": FIGURES[self.table.metric]}
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
        axes.set_xlabel(FIGURES[self.table.metric])
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
            f"{row.label}, {FIGURES[figure]}: {reason}"
            for row in self.table.rows
            for figure, reason in row.notes.items()
        ]
        return [*self.remarks, *self.table.remarks, *(f"{note[0].upper()}{note[1:]}" for note in own)]


def _report(table: Table, runs: Sequence[Mapping[str, str]], variant: Mapping[str, str]) -> _Report:
    made = _Report(table, variant)
    extra: list[str] = []
    if variant:
        line = next(line for line in runs if all(line[group] == name for group, name in variant.items()))
        wanted = tuple(f"{group}{mark}" for group in variant for mark in "=.")
        extra = [word for word in line["command"].split() if word.startswith(wanted)]
    for row in table.rows:
        made.add(row, row.run(0, extra), runs)
    return made
