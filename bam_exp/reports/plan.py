"""What of a table is done, running, failed or missing, and what the missing part would cost."""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid

from bam_exp.commands import tables
from bam_exp.commands.tables import Row
from bam_exp.complexity import Complexity
from bam_exp.config.choices import ConfigError
from bam_exp.files import read_json
from bam_exp.machine.machine import Machine
from bam_exp.reports.params import row_cost
from bam_exp.reports.report import collect
from bam_exp.runs.lock import alive, read_owner
from bam_exp.runs.run import NAMED, PROGRESS, Run, duration, result_of


@dataclass(frozen=True)
class Standing:
    """Where one run of a table stands."""

    row: Row
    run: Run
    state: str
    """`done`, `running`, `failed`, `stale`, `stopped` (it has a checkpoint) or `planned`."""
    detail: str


def standings(table_names: Sequence[str], overrides: Sequence[str], output_dir: str) -> list[Standing]:
    """Every run of these tables once, in the order of rows within seeds; `overrides` are as bam-train takes them."""
    own_seeds = [int(seed) for word in overrides if word.startswith("seed=") for seed in word[5:].split(",")]
    extra = [word for word in overrides if not word.startswith("seed=")] + [f"output_dir={output_dir}"]
    found: dict[str, Standing] = {}
    for name in table_names:
        table = tables.load(name)
        if table.task != "classification":
            continue
        rows = [(row, row.run(0, extra)) for row in table.rows]
        for seed in own_seeds or table.seeds:
            for row, of_row in rows:
                run = of_row.with_seed(seed)
                if run.name not in found:
                    found[run.name] = Standing(row, run, *_state(run))
    return list(found.values())


def _state(run: Run) -> tuple[str, str]:
    try:
        if (result := result_of(run)) is not None:
            return "done", f"top-1 error {result['metrics']['top1_error']:.2f} %"
    except ConfigError as error:
        return "stale", str(error)
    progress, owner_lives = read_json(run.folder / PROGRESS), alive(read_owner(run.folder))
    if owner_lives is None:  # on another machine of a cluster: judged by its last sign of life
        owner_lives = time.time() - float(progress.get("time", 0)) < 3600
    where = f"epoch {progress['epoch']} of {progress['epochs']}" if progress else "before the end of its first epoch"
    if owner_lives:
        return "running", where + (f", {duration(progress['seconds_to_go'])} to go" if progress else "")
    if failure := read_json(run.folder / "error.json"):
        return "failed", str(failure.get("reason", "no reason was kept"))
    return ("stopped", where) if any(run.folder.glob("checkpoint-*.pt")) else ("planned", "")


class Costs:
    """Seconds that a run would take on this machine, from runs already measured on its kind of device."""

    def __init__(self, lines: Iterable[Mapping[str, str]], machine: Machine) -> None:
        self.device = _device(machine.description())
        self.epochs: dict[tuple[str, ...], list[float]] = {}
        """(data, backbone, attention) to seconds an epoch."""
        self.per_mac: dict[str, list[float]] = {}
        """Data to seconds an epoch per multiply-accumulate of an image."""
        for line in lines:
            if _device(line) == self.device and line["seconds_per_epoch"]:
                seconds = float(line["seconds_per_epoch"])
                self.epochs.setdefault(tuple(line[group] for group in NAMED[:3]), []).append(seconds)
                self.per_mac.setdefault(line["data"], []).append(seconds / float(line["macs"]))

    def seconds(self, run: Run, cost: Complexity, train_size: int) -> float | None:
        """Of the whole run; None where nothing comparable has been measured."""
        recipe = run.figures_from["recipe"]
        epochs = float(recipe["epochs"])
        if recipe.get("max_steps"):
            epochs = min(epochs, recipe["max_steps"] / math.ceil(train_size / recipe["batch_size"]))
        if measured := self.epochs.get(tuple(run.names[group] for group in NAMED[:3])):
            return median(measured) * epochs
        rates = self.per_mac.get(run.names["data"])
        return median(rates) * cost.macs * epochs if rates else None


def _device(hardware: Mapping[str, Any]) -> str:
    return str(hardware["cpu"] if hardware["device"] == "CPU" else hardware["device"])


def disk(cost: Complexity) -> int:
    """Bytes of a run's folder: two generations of a checkpoint while it trains, each weights and momentum in float32."""
    return 2 * 2 * 4 * cost.params


def plan(table_names: Sequence[str], overrides: Sequence[str], output_dir: str, budget: float | None) -> int:
    """Print what would run, without starting anything; with a budget in seconds, what fits into it."""
    results = Path(output_dir) / "results" / "runs.csv"
    lines = collect(Path(output_dir), write=False) if results.is_file() or (Path(output_dir) / "runs").is_dir() else []
    costs = Costs(lines, Machine())
    found = standings(table_names, overrides, output_dir)
    counted: dict[str, tuple[Complexity, int]] = {}
    grid = Grid("run", "", "state", "time", "disk", title=f"what {', '.join(table_names)} would need on {costs.device}")
    total, unknown, space = 0.0, 0, 0
    missing: list[tuple[Standing, float | None]] = []
    for one in found:
        if one.state in ("done", "running", "stale"):
            grid.add_row(one.run.name, one.row.label, f"{one.state}: {one.detail}", "", "")
            continue
        if one.row.name not in counted:
            counted[one.row.name] = row_cost(one.row, overrides)
        cost, train_size = counted[one.row.name]
        seconds = costs.seconds(one.run, cost, train_size)
        missing.append((one, seconds))
        total, unknown, space = total + (seconds or 0), unknown + (seconds is None), space + disk(cost)
        state = one.state + (f": {one.detail}" if one.detail else "")
        grid.add_row(
            one.run.name,
            one.row.label,
            state,
            "?" if seconds is None else duration(seconds),
            f"{disk(cost) / 1e6:.0f} MB",
        )
    Console(width=max(100, Console().width)).print(grid)
    guess = (
        f", {duration(total)}"
        if not unknown
        else f"; the time of {unknown} is not known, none like it was run on this device"
    )
    print(f"{len(found)} runs: {len(found) - len(missing)} done, running or stale; {len(missing)} to run{guess}")
    print(f"disk while they train: {space / 1e9:.1f} GB")
    if budget is not None:
        _pick(missing, budget)
    return 0


def _pick(missing: Sequence[tuple[Standing, float | None]], budget: float) -> None:
    """Print the commands of the runs that fit a budget: first seeds first, baselines first, then in the table's order."""
    order = sorted(missing, key=lambda pair: (pair[0].run.seed, pair[0].run.names["attention"] != "none"))
    left, picked = budget, []
    for one, seconds in order:
        if seconds is not None and seconds <= left:
            left -= seconds
            picked.append(one)
    if not picked:
        print(f"nothing that is missing is known to fit into {duration(budget)}")
        return
    print(f"{len(picked)} of them fit into {duration(budget)} ({duration(budget - left)}):")
    for one in picked:
        print(f"  {one.run.command}")


def seconds_of(text: str) -> float:
    """`90s`, `25m`, `3h`, `2d` in seconds.

    Raises:
        ConfigError: if it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise ConfigError(f"--budget {text}: should be a number with s, m, h or d, as 25m")
    return float(found.group(1)) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found.group(2)]


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

    def show() -> tuple[Grid, list[Standing]]:
        found = standings(table_names, overrides, output_dir)
        grid = Grid("run", "", "state", "", title=f"{', '.join(table_names)} in {Path(output_dir).resolve()}")
        for one in found:
            grid.add_row(
                one.run.name, one.row.label, f"[{_MARKS[one.state]}]{one.state}", one.detail.replace("[", r"\[")
            )
        counts = {state: sum(one.state == state for one in found) for state in _MARKS}
        grid.caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return grid, found

    console = Console(width=max(100, Console().width))
    grid, found = show()
    if not watch:
        console.print(grid)
    else:
        _watch(console, show)
    return 1 if any(one.state == "failed" for one in found) else 0


def _watch(console: Console, show: Callable[[], tuple[Grid, list[Standing]]]) -> None:
    try:
        with Live(show()[0], console=console, refresh_per_second=1) as live:
            while True:
                time.sleep(2)
                live.update(show()[0])
    except KeyboardInterrupt:
        pass
