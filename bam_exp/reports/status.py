"""`bam-tables status`: the state of every run of tables."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from bam_exp.config import parse_overrides, swept_values
from bam_exp.durations import duration
from bam_exp.errors import ConfigError
from bam_exp.figures import FIGURES
from bam_exp.reports.grid import make_grid
from bam_exp.runs import SCHEMA, Run, run_of
from bam_exp.runs.finished import Finished
from bam_exp.runs.folder import failure_of, has_checkpoint, read_progress, result_of
from bam_exp.runs.line import Line
from bam_exp.runs.lock import is_running
from bam_exp.tables import Row, load_table


@dataclass(frozen=True)
class RunState:
    """The state of one run of a table."""

    row: Row
    run: Run
    state: str
    """`done`, `running`, `failed`, `stale`, `stopped` (it has a checkpoint) or `planned`."""
    detail: str


def run_states(table_names: Sequence[str], overrides: Sequence[str], output_dir: str) -> list[RunState]:
    """Every run of these tables once, in the order of rows within seeds; `overrides` are those of bam-train.

    Raises:
        ConfigError: if an override does not fit.
    """
    finished = Finished(Path(output_dir))
    states = [RunState(row, run, *_state(run, finished)) for row, run in _planned(table_names, overrides, output_dir)]
    finished.save()
    return states


def _planned(table_names: Sequence[str], overrides: Sequence[str], output_dir: str) -> list[tuple[Row, Run]]:
    """The rows and runs of tables, each run once."""
    seeds, extra = split_seeds(overrides)
    planned: dict[str, tuple[Row, Run]] = {}
    for name in table_names:
        table = load_table(name)
        rows = [(row, run_of(row, 0, extra, output_dir=Path(output_dir))) for row in table.rows]
        for seed in seeds or table.seeds:
            for row, of_row in rows:
                run = of_row.with_seed(seed)
                planned.setdefault(run.name, (row, run))
    return list(planned.values())


def split_seeds(overrides: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds that overrides set, as `seed=0,1` or `seed=range(3)`, and the other overrides.

    Raises:
        ConfigError: if a seed is not a whole number.
    """
    seeds: list[int] = []
    others: list[str] = []
    for override in parse_overrides(overrides):
        if override.key_or_group == "seed":
            for value in swept_values(override):
                if not value.isdecimal():
                    raise ConfigError(f"seed={value}: should be a whole number from 0 to 2147483647")
                seeds.append(int(value))
        else:
            others.append(str(override.input_line))
    return seeds, others


def _state(run: Run, finished: Finished) -> tuple[str, str]:
    if not run.folder.is_dir():
        return "planned", ""
    try:
        if (figure := _figure(run, finished.line(run.name))) is not None:
            return "done", figure
        if (result := result_of(run)) is not None:
            return "done", _headline(run, result["metrics"])
    except ConfigError as error:
        return "stale", str(error)
    progress, alive = read_progress(run.folder), is_running(run.folder)
    if alive is None:  # on another machine of a cluster: judged by its last sign of life
        alive = progress is not None and time.time() - progress.time < 3600
    where = f"epoch {progress.epoch} of {progress.epochs}" if progress else "before the end of its first epoch"
    if alive:
        return "running", where + (f", {duration(progress.seconds_to_go)} to go" if progress else "")
    if (failure := failure_of(run.folder)) is not None:
        return "failed", failure
    return ("stopped", where) if has_checkpoint(run.folder) else ("planned", "")


def _figure(run: Run, line: Line | None) -> str | None:
    """The headline of a finished run from its line; None if its files have to be asked."""
    if line is None or run.schema_of(line["fingerprint"]) != SCHEMA:
        return None
    metrics = {name: float(line[name]) for name in run.chosen.recipe.metrics if line.get(name)}
    return _headline(run, metrics) if metrics else None


def _headline(run: Run, metrics: Mapping[str, float]) -> str:
    """The first figure that the run's task has measured."""
    name = next(name for name in run.chosen.recipe.metrics if name in metrics)
    return FIGURES[name].text(metrics[name])


def labels_of(states: Sequence[RunState]) -> list[str]:
    """The labels of the rows; with the table before each, if there are several."""
    several = len({one.row.table for one in states}) > 1
    return [f"{one.row.table}: {one.row.label}" if several else one.row.label for one in states]


_MARKS = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "stale": "yellow",
    "stopped": "magenta",
    "planned": "dim",
}


def status(table_names: Sequence[str], overrides: Sequence[str], output_dir: str, watch: bool) -> int:
    """Print rows by seeds with the state of each run, once or until Ctrl-C; 1 if a run has failed, else 0."""
    planned = _planned(table_names, overrides, output_dir)
    finished = Finished(Path(output_dir))
    done: dict[str, RunState] = {}

    def states() -> list[RunState]:
        now = [done.get(run.name) or RunState(row, run, *_state(run, finished)) for row, run in planned]
        done.update({one.run.name: one for one in now if one.state == "done"})  # which does not change any more
        return now

    first = states()
    finished.save()
    title = f"{', '.join(table_names)} in {Path(output_dir).resolve()}"
    if watch:
        _watch(title, first, states)
    else:
        Console().print(_grid(title, first))
    return 1 if any(one.state == "failed" for one in first) else 0


def _grid(title: str, states: Sequence[RunState]) -> Grid:
    labels = labels_of(states)
    rows = [
        (label, f"seed {one.run.seed}", Text(one.state, _MARKS[one.state]), one.detail)
        for label, one in zip(labels, states, strict=True)
    ]
    grid = make_grid(title, ("row", "", "state", ""), rows)
    counts = {state: sum(one.state == state for one in states) for state in _MARKS}
    grid.caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    grid.caption_justify = "left"
    return grid


def _watch(title: str, shown: list[RunState], states: Callable[[], list[RunState]]) -> None:
    """Show the states until Ctrl-C, and draw them again only when one has changed: training needs the processor."""
    try:
        with Live(_grid(title, shown), console=Console(), auto_refresh=False) as live:
            while True:
                time.sleep(2)
                now = states()
                if [(one.state, one.detail) for one in now] != [(one.state, one.detail) for one in shown]:
                    live.update(_grid(title, now), refresh=True)
                    shown = now
    except KeyboardInterrupt:
        pass
