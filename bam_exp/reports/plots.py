"""Pictures of reports by matplotlib: seeds, cost, dilation and reduction, training curves. The same report gives the same bytes."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from statistics import mean
from typing import TYPE_CHECKING, Any, cast

from bam_exp.figures import FIGURES
from bam_exp.reports.report import Report, ReportRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

Curves = Mapping[str, Sequence[Sequence[float]]]
"""Row to the figure of each epoch, for each seed."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito, without black and yellow, which a dark or a light page would hide."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p")
"""Every series has a marker too: colour is never the only difference."""

_FILLS = ("full", "left", "bottom", "top", "right")
"""Fillings of the markers of several attentions in one network; the baseline's is hollow."""

_SETTINGS: Any = {
    "svg.hashsalt": "bam",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def pictures_of(report: Report, curves: Curves) -> dict[str, "Picture"]:
    """Name to picture, for every picture for which the report has runs; without any run there is none."""
    if not report.used:
        return {}
    with _settings():
        pictures = {"seeds": _seeds(report), "cost": _cost(report), "knobs": _knobs(report)}
        if curves:
            pictures["curves"] = _training(report, curves)
    return {name: picture for name, picture in pictures.items() if picture is not None}


def png(picture: "Picture") -> bytes:
    """A picture as PNG."""
    return _saved(picture, format="png", dpi=120, metadata={"Software": None})


def svg(picture: "Picture") -> bytes:
    """A picture as SVG, its text as text."""
    return _saved(picture, format="svg", metadata={"Date": None, "Creator": None})


def _saved(picture: "Picture", **options: Any) -> bytes:
    file = io.BytesIO()
    with _settings():
        picture.savefig(file, **options)
    return file.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


def _new(width: float, height: float, columns: int = 1) -> "tuple[Picture, list[Axes]]":
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    axes = list(picture.subplots(1, columns, sharey=True, squeeze=False)[0])
    for each in axes:
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    return picture, axes


def _seeds(report: Report) -> "Picture":
    """A line for each row: its seeds, their mean, and the paper's figure."""
    picture, [axes] = _new(7, 1.2 + 0.32 * len(report.rows))
    cells = list(enumerate(row.cells[report.metric] for row in report.rows))
    seeds = [(value, place) for place, cell in cells for value in cell.values]
    means = [(cell.ours, place) for place, cell in cells if cell.ours is not None]
    printed = [(float(cell.paper), place) for place, cell in cells if cell.paper and not report.variant]
    axes.plot(*zip(*seeds, strict=True), "o", color=COLOURS[0], alpha=0.7, markeredgewidth=0, label="a seed")
    axes.plot(*zip(*means, strict=True), "|", color=COLOURS[0], markersize=14, markeredgewidth=2, label="mean")
    if printed:
        axes.plot(*zip(*printed, strict=True), "D", color=COLOURS[1], markerfacecolor="none", label="paper")
    axes.set_yticks(range(len(cells)), [report.full_label(row) for row in report.rows])
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlabel(FIGURES[report.metric].heading)
    axes.grid(visible=False, axis="y")
    picture.legend(loc="outside upper right", ncols=3, frameon=False)
    return picture


def _cost(report: Report) -> "Picture | None":
    """The figure against parameters and GFLOPs: an arrow from each network without attention, hollow, to each with one."""
    rows = [row for row in report.rows if row.cells[report.metric].ours is not None]
    costs = [name for name in report.counted if any(row.cells[name].ours for row in rows)]
    if not costs:
        return None
    picture, panels = _new(3.2 + 3.2 * len(costs), 3.6, len(costs))
    styles = _styles(rows)
    units = {"params": (1e6, "Parameters, millions"), "gflops": (1e9, "GFLOPs (multiply-accumulates)")}
    for axes, name in zip(panels, costs, strict=True):
        unit, heading = units[name]
        points = {row.name: ((row.cells[name].ours or 0) / unit, row.cells[report.metric].ours or 0.0) for row in rows}
        for row in rows:
            if row.baseline in points:
                arrow = {
                    "arrowstyle": "->",
                    "color": styles[row.name]["color"],
                    "alpha": 0.6,
                    "shrinkA": 4,
                    "shrinkB": 4,
                }
                axes.annotate("", points[row.name], points[row.baseline], arrowprops=arrow)
            label = report.full_label(row) if axes is panels[0] else None
            axes.plot(*points[row.name], linestyle="", label=label, **styles[row.name])
        axes.set_xlabel(heading)
    panels[0].set_ylabel(FIGURES[report.metric].heading)
    picture.legend(loc="outside right center", frameon=False, fontsize=8)
    return picture


def _styles(rows: Sequence[ReportRow]) -> dict[str, dict[str, Any]]:
    """Row to colour, marker and filling: by network where there are several, else by row; a baseline is hollow."""
    networks = list(dict.fromkeys((row.names["data"], row.names["backbone"]) for row in rows))
    looks = list(islice(zip(cycle(COLOURS), cycle(MARKERS), strict=False), max(len(networks), len(rows))))
    fillings: dict[tuple[str, str], list[str]] = {}
    styles = {}
    for index, row in enumerate(rows):
        network = (row.names["data"], row.names["backbone"])
        colour, marker = looks[networks.index(network) if len(networks) > 1 else index]
        attentions = fillings.setdefault(network, [])
        hollow = row.names["attention"] == "none"
        if not hollow and row.names["attention"] not in attentions:
            attentions.append(row.names["attention"])
        several = len(networks) > 1 and not hollow
        fill = (
            _FILLS[attentions.index(row.names["attention"]) % len(_FILLS)] if several else "none" if hollow else "full"
        )
        styles[row.name] = {
            "color": colour,
            "marker": marker,
            "fillstyle": fill,
            "markersize": 7,
            "markerfacecoloralt": "none",
        }
    return styles


def _knobs(report: Report) -> "Picture | None":
    """The figure against dilation and against reduction, with the paper's points and the network without attention."""
    series = {knob: found for knob in ("dilation", "reduction") if (found := _series(report, knob))}
    if not series:
        return None
    picture, panels = _new(1.4 + 3.2 * len(series), 3.2, len(series))
    for axes, (knob, rows) in zip(panels, series.items(), strict=True):
        _draw_knob(axes, report, rows, [float(str(row.attention[knob])) for row in rows])
        axes.set_xlabel(f"{knob} {'d' if knob == 'dilation' else 'r'}")
    _around_the_points(panels)
    panels[0].set_ylabel(FIGURES[report.metric].heading)
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return picture


def _draw_knob(axes: "Axes", report: Report, rows: Sequence[ReportRow], places: Sequence[float]) -> None:
    cells = [row.cells[report.metric] for row in rows]
    base = next((row.cells[report.metric] for row in report.rows if row.name == rows[0].baseline), None)
    ours = [(x, cell.ours, cell.interval) for x, cell in zip(places, cells, strict=True) if cell.ours is not None]
    bars = [interval.half_width if interval else 0 for *_, interval in ours]
    x, y = [place for place, *_ in ours], [value for _, value, _ in ours]
    axes.errorbar(
        x, y, bars, color=COLOURS[0], marker="o", capsize=3, label="ours, 95 % interval" if any(bars) else "ours"
    )
    if base is not None and base.ours is not None:
        axes.axhline(base.ours, color=COLOURS[0], linestyle=":", label="ours, no attention")
    printed = [
        (x, float(cell.paper)) for x, cell in zip(places, cells, strict=True) if cell.paper and not report.variant
    ]
    if printed:
        axes.plot(
            *zip(*printed, strict=True), color=COLOURS[1], marker="D", fillstyle="none", linestyle="--", label="paper"
        )
        if base is not None and base.paper:
            axes.axhline(float(base.paper), color=COLOURS[1], linestyle="-.", label="paper, no attention")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)


def _around_the_points(panels: "Sequence[Axes]") -> None:
    """Limit the height that intervals take: those of two seeds are so long that no difference could be seen beside them."""
    markers = [line for axes in panels for line in axes.lines if line.get_marker() in ("o", "D", "None")]
    points = [float(y) for line in markers for y in cast("Sequence[float]", line.get_ydata())]
    if not points:
        return
    low, high = panels[0].get_ylim()
    room = 1.5 * (max(points) - min(points) or 1)
    panels[0].set_ylim(max(low, min(points) - room), min(high, max(points) + room))


def _series(report: Report, knob: str) -> list[ReportRow]:
    """The rows that differ in this argument of the attention alone, by its value; the longest such series."""
    groups: dict[str, dict[float, ReportRow]] = {}
    for row in report.rows:
        if row.attention.get(knob) is not None and row.cells[report.metric].ours is not None:
            rest = {
                **row.names,
                "attention": sorted((key, str(value)) for key, value in row.attention.items() if key != knob),
            }
            groups.setdefault(str(rest), {}).setdefault(float(str(row.attention[knob])), row)
    longest = max(groups.values(), key=len, default={})
    return [longest[value] for value in sorted(longest)] if len(longest) > 1 else []


def _training(report: Report, curves: Curves) -> "Picture":
    """The test figure after each epoch: the mean of the seeds, in a band from the lowest to the highest."""
    picture, [axes] = _new(7, 3.8)
    rows = [row for row in report.rows if row.name in curves]
    looks = zip(rows, cycle(COLOURS), cycle(MARKERS), strict=False)
    for row, colour, marker in looks:
        seeds = curves[row.name]
        epochs = range(1, min(map(len, seeds)) + 1)
        together = list(zip(*(seed[: len(epochs)] for seed in seeds), strict=True))
        every = max(1, len(epochs) // 10)
        axes.plot(epochs, [mean(values) for values in together], color=colour, marker=marker, markevery=every, markersize=5,
                  linestyle="--" if row.names["attention"] == "none" else "-", label=report.full_label(row))  # fmt: skip
        if len(seeds) > 1:
            axes.fill_between(
                epochs, [min(v) for v in together], [max(v) for v in together], color=colour, alpha=0.15, linewidth=0
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"test {FIGURES[report.metric].heading}")
    axes.locator_params(axis="x", integer=True)
    picture.legend(loc="outside right center", frameon=False, fontsize=8)
    return picture
