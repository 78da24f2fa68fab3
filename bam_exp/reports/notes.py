"""The sentences under a report: where its numbers are from, what they mean and what they do not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bam_exp.figures import FIGURES
from bam_exp.reports.layout import Column
from bam_exp.reports.report import Report
from bam_exp.reports.statistics import pooled_deviation, seeds_needed


def sentences_of(report: Report) -> list[str]:
    """Every sentence under a report, apart from the footnotes of its cells."""
    return [
        *_provenance(report),
        *_meaning(report),
        *_pairs(report),
        *([report.unchecked] if report.unchecked else []),
        *report.remarks,
        *_outdated(report),
        *_counting(report),
        *report.table.remarks,
    ]


@dataclass(frozen=True)
class Footnotes:
    """The footnotes of cells; cells that share a note share its number."""

    sentences: Sequence[str]
    numbers: Mapping[tuple[int, str], int]
    """(row, key of the column) to the number of its footnote, from 1."""

    def mark(self, row: int, key: str) -> str:
        """The number of a cell's footnote, or an empty string."""
        return str(self.numbers.get((row, key), ""))


def footnotes_of(report: Report, columns: Sequence[Column]) -> Footnotes:
    """The footnotes of the cells of these columns."""
    cells: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for index in range(len(report.rows)):
        for column in columns:
            if note := column.notes[index]:
                cells.setdefault((column.group, note), []).append((index, column.key))
    sentences = [
        f"{', '.join(report.full_label(report.rows[index]) for index, _ in places)}; {group}: {note}."
        for (group, note), places in cells.items()
    ]
    return Footnotes(sentences, {place: number for number, places in enumerate(cells.values(), 1) for place in places})


def _provenance(report: Report) -> list[str]:
    used = report.used
    if not used:
        return [f"No runs have finished yet; `bam-train +experiment={report.table.name}` makes them."]
    machines = sorted(
        f"{line['device']} ({line['cpu']}, {line['threads']} thread{'s' * (line['threads'] != '1')}, {line['precision']})"
        for line in used
    )
    commits = {(line["commit"] or "no checkout") + ("+changes" if line["dirty"] == "True" else "") for line in used}
    spread = ""
    if any(row.cells[report.metric].interval for row in report.rows):
        spread = ", mean ± half-width of its 95 % interval by Student's t over n seeds"
    images = " or ".join(sorted({line["test_images"] for line in used}))
    return [
        f"Ours: {FIGURES[report.metric].phrase} on the test set after the last epoch{spread}; tested on {images} images.",
        f"Data: {_listed(line['data'] for line in used)}. Recipe: {_listed(line['recipe'] for line in used)}. "
        f"Runs: {len(used)}, on {'; '.join(dict.fromkeys(machines))}; "
        f"PyTorch {_listed(line['torch'] for line in used)}; commit {', '.join(sorted(commits))}.",
    ]


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))


def _meaning(report: Report) -> list[str]:
    """Sentences on what the numbers of seeds allow to conclude."""
    sentences = []
    counts = {row.n for row in report.rows}
    if 1 in counts:
        sentences.append(
            "n = 1: a single run has no interval, and its differences from other rows may be the seed's alone."
        )
    if 2 in counts:
        sentences.append("n = 2: the interval of a mean reaches 9.0 standard deviations to either side.")
    if not report.gains:
        return sentences
    gain = "Gain: over the same network without attention, positive where the attention helps"
    tested = {
        (row.names["backbone"], row.names["attention"]) for row in report.rows if row.gain and row.gain.p is not None
    }
    if tested:
        gain += "; 95 % interval by Welch's t, each gain looked at by itself"
        gain += f"; p corrected by Holm for the {len(tested)} gains of the table" if len(tested) > 1 else ""
    return [*sentences, f"{gain}.", *_power(report, len(tested))]


def _pairs(report: Report) -> Iterable[str]:
    """Sentences on two networks, compared image by image."""
    labels = {row.name: row.label for row in report.rows}
    for row in report.rows:
        if row.paired is not None:
            p = "< 0.001" if row.paired.p < 0.001 else f"= {row.paired.p:.3f}"
            yield (
                f"These two networks of seed {row.lines[0]['seed']}: {report.full_label(row)} is right on "
                f"{row.paired.only_first} test images that {labels[row.baseline or '']} gets wrong, and wrong on "
                f"{row.paired.only_second} that it gets right (McNemar's exact test: p {p}). "
                f"This says nothing about other seeds, so nothing about the methods."
            )


def _power(report: Report, comparisons: int) -> list[str]:
    """The number of seeds that a gain of one point takes, from the spread of the seeds in all rows."""
    groups = {(row.names["backbone"], row.names["attention"]): row.cells[report.metric].values for row in report.rows}
    pooled = pooled_deviation(list(groups.values()))
    if pooled is None or not pooled[0] or not comparisons:
        return []
    deviation, freedom = pooled
    alone, among = (seeds_needed(deviation, 1.0, comparisons=count) for count in (1, comparisons))
    takes = f"{alone or 'more than 1000'} seeds a row"
    if comparisons > 1:
        takes += f" if it is the only comparison, {among or 'more than 1000'} if it is one of {comparisons}"
    return [
        f"The standard deviation between seeds, pooled over the rows, is {deviation:.2f} points ({freedom} degrees of "
        f"freedom). To show a gain of one point with a power of 80 % takes {takes}."
    ]


def _outdated(report: Report) -> Iterable[str]:
    """The rows with figures of earlier versions, and the reasons why this version would measure others."""
    reasons = dict.fromkeys(reason for row in report.rows for reason in row.outdated)
    for reason in reasons:
        labels = [report.full_label(row) for row in report.rows if reason in row.outdated]
        where = (
            "every row that has figures" if len(labels) == sum(row.n > 0 for row in report.rows) else ", ".join(labels)
        )
        yield f"Figures of an earlier version: {reason}. They stand in {where}."


def _counting(report: Report) -> list[str]:
    """The note on GFLOPs that the paper counts for another head."""
    classes = {row.counting.get("classes") for row in report.table.rows}
    if "gflops" not in report.table.columns or len(classes) != 1 or classes == {None}:
        return []
    return [
        f"GFLOPs are multiply-accumulates, counted as the paper counts here: for a head of {classes.pop():,} classes."
    ]
