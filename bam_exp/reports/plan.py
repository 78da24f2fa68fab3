"""`bam-tables plan`: what is missing of tables, and what it would cost."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from bam_exp.complexity import Complexity
from bam_exp.durations import duration
from bam_exp.machine import Machine
from bam_exp.reports.cost import Costs, disk
from bam_exp.reports.counts import row_cost
from bam_exp.reports.status import RunState, run_states, split_seeds
from bam_exp.runs.store import collect


def plan(table_names: Sequence[str], overrides: Sequence[str], output_dir: str, budget: float | None) -> int:
    """Print what would run, without starting anything; with a budget in seconds, what fits into it."""
    results = Path(output_dir) / "results" / "runs.csv"
    lines = collect(Path(output_dir), write=False) if results.is_file() or (Path(output_dir) / "runs").is_dir() else []
    costs = Costs(lines, Machine())
    found = run_states(table_names, overrides, output_dir)
    counted: dict[str, tuple[Complexity, int]] = {}
    grid = Grid("run", "", "state", "time", "disk", title=f"what {', '.join(table_names)} would need on {costs.device}")
    total, unknown, space = 0.0, 0, 0
    missing: list[tuple[RunState, float | None]] = []
    for one in found:
        if one.state in ("done", "running", "stale"):
            grid.add_row(one.run.name, one.row.label, f"{one.state}: {one.detail}", "", "")
            continue
        if one.row.name not in counted:
            counted[one.row.name] = row_cost(one.row, split_seeds(overrides)[1])
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


def _pick(missing: Sequence[tuple[RunState, float | None]], budget: float) -> None:
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
