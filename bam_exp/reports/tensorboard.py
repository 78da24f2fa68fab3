"""Short names for runs in TensorBoard: a folder of links, one for each run of a table."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from bam_exp.config import NAMED
from bam_exp.runs import run_of
from bam_exp.runs.folder import EVENTS
from bam_exp.tables import load_table

FOLDER = "tensorboard"
"""Folder of the links, beside `runs` and `results`."""


def link_tables(names: Sequence[str], output_dir: str) -> None:
    """Make the links of tables, and print for each the command that shows its curves side by side.

    Runs with another data set or recipe than a table's own get a folder of their own, as they get a report of their own.
    """
    for name in names:
        table = load_table(name)
        runs = [(row.label, run_of(row, 0).names) for row in table.rows]
        labels: dict[tuple[str, str], str] = {}
        for label, of_row in runs:
            labels.setdefault((of_row["backbone"], of_row["attention"]), label)
        own = runs[0][1]
        folders: dict[str, dict[str, str]] = {}
        for events in sorted(Path(output_dir, "runs").glob("*/" * len(NAMED) + "seed*/" + EVENTS)):
            *choices, seed = events.parent.parts[-5:]
            chosen = dict(zip(NAMED, choices, strict=True))
            row = labels.get((chosen["backbone"], chosen["attention"]))
            if row is not None and re.fullmatch(r"seed\d+", seed):
                others = [chosen[group] for group in ("data", "recipe") if chosen[group] != own[group]]
                folders.setdefault("--".join([name, *others]), {})["/".join([*choices, seed])] = row
        for folder, linked in folders.items():
            links = link_runs(Path(output_dir), folder, linked)
            print(f"curves side by side: tensorboard --host localhost --logdir {shlex.quote(str(links))}")


def link_runs(output_dir: Path, folder: str, labels: Mapping[str, str]) -> Path:
    """Make links to runs, so that TensorBoard names each by the label of its row and its seed.

    TensorBoard names a run by its path below the log folder; that of a run's own folder is too long to be read in a chart. Links of
    an earlier call are replaced.

    Args:
        folder: name of the folder of links.
        labels: the name of a run, to the label of its row.

    Returns:
        the folder for `tensorboard --logdir`.
    """
    links = output_dir / FOLDER / folder
    links.mkdir(parents=True, exist_ok=True)
    for old in links.iterdir():
        if old.is_symlink():
            old.unlink()
    for name, label in labels.items():
        run = output_dir / "runs" / name
        plain = re.sub(r"[^\w()., +=-]", "-", label).strip(" .")
        link = links / f"{plain} {run.name}"
        if not link.exists():
            link.symlink_to(os.path.relpath(run, links), target_is_directory=True)
    return links
