"""Grids of text that fit a terminal of 80 columns."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def make_grid(title: str, heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A grid whose columns wrap where the terminal is narrow; text in square brackets stands as it is."""
    grid = Table(title=title, title_justify="left", pad_edge=False, box=None, header_style="bold")
    for head in heads:
        grid.add_column(head, overflow="fold", justify="right" if head in ("time", "disk") else "left",
                        no_wrap=head in ("time", "disk"))  # fmt: skip
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return grid


def print_grid(title: str, heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a grid in the width of the terminal, which is 80 columns where there is none."""
    Console().print(make_grid(title, heads, rows))
