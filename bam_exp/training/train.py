"""Training one run in this process: its lock, a GPU, the other ranks, and how it ends."""

import sys
import traceback
from contextlib import ExitStack

from bam_exp.build import Parts
from bam_exp.console import say
from bam_exp.errors import BamError, Busy, ConfigError
from bam_exp.figures import FIGURES
from bam_exp.machine import Machine, ranks
from bam_exp.machine.gpus import gpu_lease
from bam_exp.machine.interruption import Interrupted, Interruption
from bam_exp.machine.ranks import error_line
from bam_exp.machine.rendezvous import process_group
from bam_exp.machine.world import World
from bam_exp.runs.folder import record_failure, result_of
from bam_exp.runs.lock import run_lock
from bam_exp.runs.run import Run
from bam_exp.training.fit import fit


def train(run: Run, parts: Parts, machine: Machine, command: str | None = None) -> None:
    """Train a run in this process, holding its lock and a GPU.

    Args:
        parts: of the run, on the meta device; its data is prepared.
        command: the command that continues the run, to be shown if it is stopped; None for a job of a sweep, which says it.

    Raises:
        SystemExit: 1 if the run failed, 128 + the signal if it was told to stop.
        Busy: if another process is training the run.
    """
    interruption = Interruption()
    interruption.listen()
    first = World.from_environment().rank == 0

    def on_failure(reason: str, trace: str = "") -> None:
        say(f"bam-train: {run.name} failed: {record_failure(run, reason, trace)}")

    try:
        with process_group(machine.processes, run.full_overrides, on_failure) as group, ExitStack() as held:
            gpus: list[str] = []
            if first:
                held.enter_context(run_lock(run))
                gpus = held.enter_context(gpu_lease(machine))
            # Another process may have finished the run while this one was waiting for a GPU.
            done, gpus = group.broadcast([first and result_of(run) is not None, gpus])
            if done:
                return
            gpu = (gpus[ranks.rank()] if gpus else World.from_environment().gpu()) if machine.uses_gpu else None
            group.init_process_group(gpu=gpu)
            result = fit(run, parts, machine, interruption)
    except Interrupted as stop:
        if first:
            hint = "" if command is None else f"; continue with: {command}"
            say(f"{run.name}: stopped, its checkpoint is saved{hint}")
        raise SystemExit(128 + stop.number) from stop
    except (Busy, ConfigError):
        raise
    except Exception as error:
        if not isinstance(error, BamError | OSError):  # whose line says everything
            say(traceback.format_exc().rstrip())
        if first:
            on_failure(error_line(error), traceback.format_exc())
        raise SystemExit(1) from error
    if first:
        figure = FIGURES[parts.task.headline]
        say(f"{run.name}: {figure.text(result['metrics'][figure.name])}  ({run.folder / 'result.json'})", sys.stdout)
