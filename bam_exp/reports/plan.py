"""`bam-tables plan`: what is missing of tables, and what it would cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bam_exp.cpu import available_cores, cpu_name
from bam_exp.durations import duration
from bam_exp.machine.gpus import may_have_gpus
from bam_exp.reports.cost import Costs, Estimate, Work, describe, disk
from bam_exp.reports.counts import count
from bam_exp.reports.grid import print_grid
from bam_exp.reports.measure import measure, measured_lines
from bam_exp.reports.status import RunState, labels_of, run_states
from bam_exp.runs.rows import data_sizes
from bam_exp.runs.run import Run
from bam_exp.runs.store import Line, collect

_MARKS = {"measured": "", "scaled": "~", "guess": "?"}


@dataclass(frozen=True)
class Missing:
    """A run that is not done, and what it would take."""

    state: RunState
    work: Work
    estimate: Estimate

    @property
    def bytes(self) -> int:
        """The largest size of the run's folder."""
        best = bool(self.state.run.chosen.trainer.arguments.get("best_weights", False))
        return disk(self.work.cost, best_weights=best)


def plan(
    table_names: Sequence[str],
    overrides: Sequence[str],
    output_dir: str,
    budget: float | None,
    *,
    measured: bool = False,
) -> int:
    """Print what would run, without starting anything; with a budget in seconds, what fits into it.

    With `measured`, each network that is missing is trained for twenty steps first, to time them.
    """
    states = run_states(table_names, overrides, output_dir)
    todo = [state for state in states if state.state not in ("done", "running", "stale")]
    works = _works(todo)
    device = device_of(states[0].run) if states else {}
    if measured:
        measure({works[state.row.name].network: state.run for state in todo}, Path(output_dir))
    costs = Costs(_lines(Path(output_dir)), device)
    missing = [Missing(state, works[state.row.name], costs.estimate(works[state.row.name])) for state in todo]
    by_name = {one.state.run.name: one for one in missing}
    rows = []
    for label, state in zip(labels_of(states), states, strict=True):
        detail = state.state + (f": {state.detail}" if state.detail else "")
        one = by_name.get(state.run.name)
        cells = (_MARKS[one.estimate.source] + duration(one.estimate.seconds), _megabytes(one)) if one else ("", "")
        rows.append((label, f"seed {state.run.seed}", detail, *cells))
    if states:
        print_grid(
            f"Cost of {', '.join(table_names)} on {describe(device)}",
            ("row", "", "state", "time", "disk"),
            rows,
        )
    _sum_up(len(states), missing)
    if budget is not None:
        _pick(missing, budget)
    return 0


def device_of(run: Run) -> Mapping[str, Any]:
    """The device on which a run would be computed here, as results describe it.

    On a CPU, its precision may be `auto`: that of the runs of the kind that have been started here.

    Raises:
        ConfigError: if there is no such device.
    """
    trainer = run.chosen.trainer
    if trainer.name == "default" and not trainer.changed and not may_have_gpus():  # no need to wait for PyTorch
        return {"device": "CPU", "cpu": cpu_name(), "threads": available_cores(), "precision": "auto"}
    from bam_exp.build import make_machine

    machine = make_machine(run.chosen)
    machine.check_device()
    precision = {} if machine.uses_gpu else {"precision": machine.precision}
    return {**machine.description(), "threads": machine.threads or available_cores(), **precision}


def _works(states: Sequence[RunState]) -> dict[str, Work]:
    """The work of each row that is missing."""
    works: dict[str, Work] = {}
    for state in states:
        if state.row.name not in works:
            chosen = state.run.chosen
            works[state.row.name] = Work.of(state.run, count(chosen, {}, {}), *data_sizes(chosen))
    return works


def _lines(output_dir: Path) -> list[Line]:
    """The lines of finished runs and of measured steps, if there are any."""
    stored = (output_dir / "results" / "runs.csv").is_file() or (output_dir / "runs").is_dir()
    return [*(collect(output_dir, write=False) if stored else []), *measured_lines(output_dir)]


def _megabytes(one: Missing) -> str:
    return f"{one.bytes / 1e6:.0f} MB"


def _sum_up(count: int, missing: Sequence[Missing]) -> None:
    total = sum(one.estimate.seconds for one in missing)
    guess = f", {duration(total)}" if missing else ""
    print(f"{count} runs: {count - len(missing)} done, running or stale; {len(missing)} to run{guess}")
    meanings = {
        "scaled": "~ scaled from the measured steps of other networks",
        "guess": "? a rough guess, off by a factor of two either way; --measure times it",
    }
    for source, words in meanings.items():
        number = sum(one.estimate.source == source for one in missing)
        if number:
            print(f"{words} ({number} of {len(missing)})")
    print(f"disk while they train: {sum(one.bytes for one in missing) / 1e9:.1f} GB")


def _pick(missing: Sequence[Missing], budget: float) -> None:
    """Print the commands of the runs that fit a budget: first seeds first, baselines first, then in the table's order."""
    order = sorted(missing, key=lambda one: (one.state.run.seed, one.state.run.names["attention"] != "none"))
    left, picked = budget, []
    for one in order:
        if one.estimate.seconds <= left:
            left -= one.estimate.seconds
            picked.append(one)
    if not picked:
        print(f"nothing that is missing fits into {duration(budget)}")
        return
    rough = " by guess" if any(one.estimate.source == "guess" for one in picked) else ""
    print(f"{len(picked)} of them fit into {duration(budget)} ({duration(budget - left)}{rough}):")
    for one in picked:
        print(f"  {one.state.run.command}")
