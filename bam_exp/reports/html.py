"""Reports in HTML: one file that needs no other, with its pictures inside, for light and dark pages of any width."""

import base64
import re
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from bam_exp.reports.drawn import Drawn
from bam_exp.reports.layout import columns_of
from bam_exp.reports.notes import footnotes_of, sentences_of
from bam_exp.reports.render import render
from bam_exp.reports.report import Report

if TYPE_CHECKING:
    from markupsafe import Markup

CAPTIONS = {
    "seeds": "Each seed, the mean of the seeds and, in a table of the paper, the paper's figure.",
    "cost": "What a network costs and what it reaches: hollow without attention, filled with one, an arrow for each attention.",
    "knobs": "Dilation and reduction of BAM, each varied alone; the lines across are the network without attention.",
    "curves": "The test set after each epoch: the mean of the seeds, in a band from the lowest to the highest.",
    "maps": "Attention maps of test images: for each attention the map before it, its channel and spatial branch, M(F), and the "
    "map after it; then Grad-CAM with and without the attention. The object is outlined.",
}
"""The captions of the pictures."""


def html(report: Report, pictures: Mapping[str, Drawn], maps: bytes | None = None) -> str:
    """A report as a page; `maps` is a PNG of attention maps to show below the plots."""
    columns = columns_of(report)
    notes = footnotes_of(report, columns)
    rows = [
        {
            "label": row.label,
            "apart": index > 0 and row.names["attention"] == "none",
            "cells": [(column.cells[index], notes.mark(index, column.key)) for column in columns],
        }
        for index, row in enumerate(report.rows)
    ]
    return render(
        "table.html.j2",
        title=report.title.replace("`", ""),
        subtitle=f"Not the table itself, {report.table.title.replace('`', '')}." if report.variant else "",
        groups=[
            {"text": text, "span": len(list(members))} for text, members in groupby(column.group for column in columns)
        ],
        heads=[column.head for column in columns],
        rows=rows,
        sentences=[_with_code(sentence) for sentence in sentences_of(report)],
        footnotes=[_with_code(sentence) for sentence in notes.sentences],
        pictures=[*_inline(pictures), *([_embedded(maps)] if maps else [])],
    )


def _with_code(sentence: str) -> "Markup":
    """A sentence whose words between backticks are code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _inline(pictures: Mapping[str, Drawn]) -> list[dict[str, object]]:
    """The pictures as SVG elements, in the colours of the page."""
    from markupsafe import Markup

    inline: list[dict[str, object]] = []
    for name, picture in pictures.items():
        text = picture.inline
        text = text[text.index("<svg") :].strip()
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = text.replace("#000000", "currentColor").replace("fill: #ffffff", "fill: none")
        text = text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
        inline.append({"content": Markup(text), "caption": CAPTIONS[name], "width": picture.width})
    return inline


def _embedded(maps: bytes) -> dict[str, object]:
    from markupsafe import Markup

    data = base64.b64encode(maps).decode()
    content = Markup('<img alt="attention maps" src="data:image/png;base64,{}">').format(data)
    return {"content": content, "caption": CAPTIONS["maps"], "width": 1280}
