"""Training one run: its lock, a GPU, the other ranks, and how it ends."""

import signal
import sys
import time
import traceback
from contextlib import ExitStack
from typing import Any

from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from bam_exp.build import Parts
from bam_exp.config import search_path
from bam_exp.console import say
from bam_exp.errors import BamError, Busy, ConfigError, RankFailed
from bam_exp.exits import out_of_memory
from bam_exp.figures import FIGURES
from bam_exp.machine import Machine, ranks
from bam_exp.machine.gpus import gpu_lease, show_gpu_of_rank
from bam_exp.machine.interruption import Interrupted, Interruption
from bam_exp.runs.folder import clear_failure, failure_of, record_failure, result_of
from bam_exp.runs.lock import run_lock
from bam_exp.runs.run import Run


def train(run: Run, parts: Parts, machine: Machine, command: str | None = None) -> None:
    """Train a run: in this process, or in ranks that are started here if it takes several devices and nobody has started them.

    Args:
        parts: of the run, on the meta device; its data is prepared.
        command: the command that continues the run, to be shown if it is stopped; None for a job of a sweep, which says it.

    Raises:
        SystemExit: 1 if the run failed, 128 + the signal if it was told to stop.
        Busy: if another process is training the run.
    """
    if machine.world.size < machine.processes:
        _launch(run, machine, command)
        return
    interruption = Interruption()
    interruption.listen()
    if interruption.number is None and interruption.requested:
        raise SystemExit(128 + signal.SIGTERM)  # the sweep has gone while this run was being started
    first = machine.world.rank == 0
    try:
        with ExitStack() as held:
            result = _train_here(run, parts, machine, interruption, held)
    except Interrupted as stop:
        if first:
            hint = "" if command is None else f"; continue with: {command}"
            say(f"{run.name}: stopped, its checkpoint is saved{hint}")
        raise SystemExit(128 + stop.number) from stop
    except Exception as error:
        if machine.world.size > 1:
            get_error_handler().record_exception(error)  # for the launcher, in the file that it has named
        if machine.world.launched:
            raise SystemExit(1) from error
        if isinstance(error, Busy | ConfigError):
            raise
        _fail(run, machine, error)
        raise SystemExit(1) from error
    if first and result is not None:
        figure = FIGURES[parts.task.headline]
        say(f"{run.name}: {figure.text(result['metrics'][figure.name])}  ({run.folder / 'result.json'})", sys.stdout)


def _train_here(
    run: Run, parts: Parts, machine: Machine, interruption: Interruption, held: ExitStack
) -> dict[str, Any] | None:
    """Train in this process, which is alone or a rank; None if the run turns out to be done."""
    from bam_exp.training.fit import fit  # imports Lightning, which takes seconds and which `_launch` does not need

    world = machine.world
    if world.size > 1 and machine.uses_gpu:
        show_gpu_of_rank(world)
        machine = _opened(run, machine)
    held.enter_context(ranks.process_group(world, gpu=machine.uses_gpu))
    ranks.from_first(lambda: held.enter_context(run_lock(run)))
    held.enter_context(gpu_lease(machine))
    # Another process may have finished the run while this one was waiting for a GPU.
    if ranks.from_first(lambda: result_of(run) is not None):
        return None
    if world.size == 1:
        machine = _opened(run, machine)
    if ranks.rank() == 0:
        clear_failure(run)
    return fit(run, parts, machine, interruption)


def _opened(run: Run, machine: Machine) -> Machine:
    """The machine with its GPU tried; the reason why it cannot be used is recorded for the sweep's summary."""
    try:
        return machine.opened()
    except ConfigError as error:
        record_failure(run, str(error))
        raise


def _launch(run: Run, machine: Machine, command: str | None) -> None:
    """Train in ranks that are started here, and say how the run has ended if it has failed."""
    from bam_exp.machine.launch import launch

    with run_lock(run):
        pass  # if another process is training the run, it is better to know before waiting for GPUs
    with gpu_lease(machine):
        try:
            launch(machine.processes, [*search_path(), *run.full_overrides], command)
        except RankFailed as error:
            if error.trace:
                say(error.trace.rstrip())
            _say_failed(run, str(error), error.trace)
            raise SystemExit(1) from error


def _fail(run: Run, machine: Machine, error: Exception) -> None:
    """Report that the run has failed in this process; with several ranks, every rank comes here."""
    world, trace = machine.world, traceback.format_exc()
    no_memory = out_of_memory(error)
    reason = no_memory or f"{type(error).__name__}: {' '.join(str(error).split())}"
    if world.size > 1:
        reason = f"rank {world.rank} of {world.size}: {reason}"
        # gloo raises a plain RuntimeError if the connection to another rank is lost.
        if type(error) is RuntimeError or isinstance(error, distributed.DistError):
            time.sleep(2)  # leaves the rank that has broken the connection the time to say why
            if failure_of(run.folder) is not None:
                return
    if no_memory is None and not isinstance(error, BamError | OSError):  # whose line says everything
        say(trace.rstrip())
    _say_failed(run, reason, trace)


def _say_failed(run: Run, reason: str, trace: str) -> None:
    say(f"bam-train: {run.name} failed: {record_failure(run, reason, trace)}")
