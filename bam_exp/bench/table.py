"""The output of the benchmarks: tables in the terminal, <device>.csv, .md and a chart."""

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bam_exp.bench.measure import Row

COMMANDS = {
    "step": "training steps of one network, from the typical peer's to ours: five minutes on a CPU",
    "module": "an attention alone, forward and backward, at the seams of a CIFAR ResNet-50: a minute",
    "input": "augmented batches, of CIFAR's size and of photos, beside PIL's: half a minute",
    "epoch": "what a loop adds to a step, and whole epochs through bam-train: two minutes",
    "store": "the commands beside a store of many runs: CPU seconds and memory, by child processes; ten minutes",
    "sweep": "several runs on the device at once, what all together get through: two minutes",
}
"""The sub-commands: each is a module of bam_exp.bench whose `rows` measures."""

CONTEXT = ("device", "threads", "torch", "date", "clock", "rounds", "copy GB/s", "matmul GFLOP/s", "load")
DETAILS = ("attention", "wall ms", "ceiling images/s", "logits error", "gradient error", "MB an image", "saved MB")
"""Columns of the files for which a terminal has no room. Quartiles are not shown there, either."""


def write(folder: Path, command: str, rows: Sequence[Row], context: Row) -> list[Path]:
    """Replace the rows of a sub-command in <device>.csv, and make <device>.md and .png from it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(context["device"]).lower()).strip("-")
    table, text, chart = (folder / f"{name}.{suffix}" for suffix in ("csv", "md", "png"))
    everything: list[Row] = [{"command": command, **row, **context} for row in map(_rounded, rows)]
    if table.is_file():
        with table.open(newline="") as file:
            everything += [row for row in csv.DictReader(file) if row["command"] != command]
    everything.sort(key=lambda row: (list(COMMANDS).index(row["command"].split()[0]), row["command"]))
    columns = dict.fromkeys(key for row in everything for key in row if key not in CONTEXT)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *CONTEXT], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)
    lines = [f"# Measured on {context['device']}", "", "By `bam-bench`; docs/performance.md says what each figure is."]
    for one in dict.fromkeys(row["command"] for row in everything):
        found = [row for row in everything if row["command"] == one]
        lines += ["", f"## bam-bench {one}", "", _above(found[0])]
        for of, keys, cells in tables(found):
            rule = ["---" if key == "variant" else "--:" for key in keys]
            lines += ["", f"**{of}**", "", *("| " + " | ".join(line) + " |" for line in (keys, rule, *cells))]
    draw(chart, everything)
    text.write_text("\n".join([*lines, "", f"![The rates, with the ceilings drawn in]({chart.name})", ""]))
    return [table, text, chart]


def _rounded(row: Row) -> Row:
    """Four significant digits."""
    return {key: f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else
            f"{value:.0f}" if isinstance(value, float) else value for key, value in row.items()}  # fmt: skip


def _above(row: Row) -> str:
    return ", ".join(f"{key} {row[key]}" for key in CONTEXT)


def tables(rows: Sequence[Row], *, brief: bool = False) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A table for each value of the column `of`: the value, the columns that are not empty, and the cells."""
    for of in dict.fromkeys(row["of"] for row in rows):
        found = [row for row in rows if row["of"] == of]
        hidden = (*CONTEXT, "command", "of", *(DETAILS if brief else ()))
        given = dict.fromkeys(key for row in found for key in row if row[key] not in ("", None))
        keys = [key for key in given if key not in hidden and not key.endswith((" low", " high"))]

        def cell(row: Row, key: str, brief: bool = brief) -> str:
            low = "" if brief else row.get(f"{key} low", "")
            return f"{row.get(key, '')}" + (f" ({low} to {row[f'{key} high']})" if low != "" else "")

        yield of, keys, [[cell(row, key) for key in keys] for row in found]


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw the rates of the steps and of BAM alone in images per second, each with the ceiling of its bytes and FLOPs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = []
    for command, what in (("step", "training step"), ("module", "attention alone, forward and backward")):
        found = [row for row in rows if row["command"] == command and row.get("ceiling images/s") not in ("", None)]
        found = [row for row in found if row["of"] == found[0]["of"] and "copy" not in row["variant"]]
        if found:
            panels.append((f"{what}: {found[0]['of']}", found))
    if not panels:
        return
    heights = [len(found) + 2 for _, found in panels]
    size = (9, 0.36 * sum(heights))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (title, found) in zip(axes[:, 0], panels, strict=True):
        for y, row in enumerate(found):
            rate, limit, name = float(row["images/s"]), float(row["ceiling images/s"]), str(row["variant"])
            plain = "no attention" in name or name in ("SE", "ECA", "CBAM")
            theirs = row.get("attention") == "released" or ("released" in name and "in our form" not in name)
            axis.barh(y, rate, 0.66, color="#b0b0b0" if plain else "#d98c5f" if theirs else "#3b6ea5")
            axis.vlines(limit, y - 0.42, y + 0.42, color="black", linewidth=2)
            beside = max(rate, limit) if 0.85 * limit < rate < 1.02 * limit else rate
            axis.annotate(f"  {row['images/s']}", (beside, y), va="center", size=8)
        axis.set_yticks(range(len(found)), [row["variant"] for row in found], size=8)
        axis.invert_yaxis()
        axis.margins(x=0.1)
        axis.set_xlim(left=0)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(title, size=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    label = (
        "images/s; blue: our BAM, orange: the released form, grey: neither; black line: the ceiling of bytes and FLOPs"
    )
    axes[-1, 0].set_xlabel(label, size=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(rows: Sequence[Row], context: Row) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(_above(context), markup=False)
    for of, keys, cells in tables([*map(_rounded, rows)], brief=True):
        grid = Table(title=of, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for key in keys:
            name = key == "variant"
            grid.add_column(key, justify="left" if name else "right", vertical="bottom", no_wrap=name)
        for line in cells:
            grid.add_row(*line)
        console.print()
        console.print(grid)
