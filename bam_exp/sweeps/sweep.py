"""A sweep: every job is checked before the first one starts, and at the end it says what became of each."""

import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from bam_exp.build import build_on_meta, check_shares, make_machine
from bam_exp.console import say
from bam_exp.data.dataset import DataSet
from bam_exp.durations import duration
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors
from bam_exp.files import reason_of
from bam_exp.processes import PLACE, SWEEP
from bam_exp.runs.folder import RESULT, failure_of, is_done, result_of
from bam_exp.runs.lock import read_owner, running_elsewhere
from bam_exp.runs.run import Run
from bam_exp.sweeps.interrupted import runs_outlive_workers, say_interrupted
from bam_exp.sweeps.jobs import check_sweep, jobs_of
from bam_exp.sweeps.slurm import lost_jobs_recorded


class Sweep(Callback):
    """Hydra's callback of a sweep."""

    active: ClassVar["Sweep | None"] = None
    """The sweep of this process, for the summary when it is interrupted: Hydra calls no callback then."""

    def __init__(self) -> None:
        self.runs: dict[Path, Run] = {}
        """The runs by their folders."""
        self.jobs: list[Run] = []
        """The run of each job; several jobs may have the same run."""
        self.results: list[str] = []
        """The path of the result of each job."""
        self.held = ExitStack()
        self.started = 0.0
        """The time at which the first job could start, in seconds since 1970."""
        self.done_before = 0
        """The number of runs that were done then."""
        self.elsewhere: set[Path] = set()
        """The folders of the runs that other processes were training then."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse the whole sweep if one of its jobs is wrong: one line, exit code 2, nothing written."""
        os.environ[SWEEP] = str(os.getpid())
        with one_line_errors("bam-train"):  # Hydra swallows what a callback raises, except for SystemExit
            check_sweep(config)
            # Only Hydra's own sweeper knows all of its jobs before they start; a search such as Optuna's checks each as it comes.
            if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
                return
            self._check_jobs(config)
            _make_folder(config)
            Sweep.active = self
            # Hydra would compose every job once more, to see whether it can be composed: a tenth of a second for each.
            self.held.enter_context(mock.patch.object(Sweeper, "validate_batch_is_legal"))
            done = sum(is_done(run) for run in self.runs.values())
            self.results = [str(run.folder / RESULT) for run in self.jobs]
            self.started, self.done_before = time.time(), self._count(0)
            self.elsewhere = {folder for folder, run in self.runs.items() if running_elsewhere(run)}
            say(f"{len(self.runs)} runs: {done} done already, {len(self.runs) - done} to run", sys.stdout)
            if done == len(self.runs):
                say("nothing left to run", sys.stdout)
                self._report(config)
                raise SystemExit(0)
            launcher = config.hydra.runtime.choices["hydra/launcher"]
            if launcher == "joblib":
                self.held.enter_context(runs_outlive_workers())
            if "submitit" in launcher:
                self.held.enter_context(lost_jobs_recorded(self.jobs))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on Ctrl-C has a summary

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Say which run begins and how long the sweep still takes; the process of the run finds its place in its environment."""
        if OmegaConf.is_missing(config.hydra.job, "num"):  # this is not a job of a sweep
            return
        job = int(config.hydra.job.num)
        # Several jobs may have one run, which counts once.
        number = list(self.runs).index(self.jobs[job].folder) if self.jobs else job
        count = len(self.runs)
        choices = config.hydra.runtime.choices
        row = next((choice for group, choice in choices.items() if group.startswith("row/")), "")
        os.environ[PLACE] = f"{number + 1}{f'/{count}' if count else ''} {row}".rstrip()
        if self.jobs and not is_done(self.jobs[job]):
            say(f"run {number + 1} of {count}{self._time_to_go(job)}", sys.stdout)

    def _time_to_go(self, number: int) -> str:
        """The time that the jobs from this number on take, by the pace of the runs that this sweep has finished."""
        finished = self._count(0) - self.done_before
        left = len(set(self.results[number:])) - self._count(number)
        seconds = (time.time() - self.started) / max(1, finished) * left
        return f", about {duration(seconds)} to go" if finished else ""

    def _count(self, first: int) -> int:
        """The number of runs that have a result, of those of the jobs from the number `first` on."""
        return sum(map(os.path.isfile, set(self.results[first:])))

    def __getstate__(self) -> dict[str, Any]:
        """What goes to the workers of a launcher: everything but what is held in this process."""
        return {**self.__dict__, "held": ExitStack()}

    def _check_jobs(self, master: DictConfig) -> None:
        remote = master.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm"  # its nodes may have GPUs
        prepared: set[str] = set()
        checked: dict[tuple[str, ...], tuple[Run, DataSet]] = {}
        for key, chosen in jobs_of(master):
            if key not in checked:
                parts, machine = build_on_meta(chosen), make_machine(chosen)
                if not remote:
                    machine.check_device()
                if not remote or machine.devices != "auto":
                    check_shares(parts, machine)
                checked[key] = Run.of(chosen, parts.data.digest), parts.data
            first, data = checked[key]
            run = first.with_seed(chosen.seed)
            self.jobs.append(run)
            if (same := self.runs.get(run.folder)) is not None:
                if same.fingerprint != run.fingerprint:
                    raise ConfigError(
                        f"{run.name}: two jobs of this sweep would have this folder and train different runs (of weights= a "
                        "name has the file's name only, of data_root= nothing); start a sweep with an output_dir=… for each"
                    )
                continue
            self.runs[run.folder] = run
            if result_of(run) is None and run.names["data"] not in prepared:
                data.prepare()
                prepared.add(run.names["data"])

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Say what became of each run, print the table, and end with exit code 1 if a run is not done."""
        self.held.close()
        Sweep.active = None
        os.environ.pop(PLACE, None)
        missing = [run for run in self.runs.values() if not is_done(run)]
        running = [run for run in missing if running_elsewhere(run)]
        for run in missing:
            if run in running:
                say(f"RUNNING {run.name}: {read_owner(run.folder) or 'another process'} is training it")
            else:
                say(f"FAILED  {run.name}: {_why_unfinished(run)}")
        if self.runs:
            done = len(self.runs) - len(missing)
            parts = {"failed": len(missing) - len(running), "running in another process": len(running)}
            more = "".join(f", {count} {what}" for what, count in parts.items() if count)
            more += "; the same command runs what is missing" if missing else ""
            say(f"{done} of {len(self.runs)} runs done{more}", sys.stdout)
        code = 1 if missing else 0
        try:
            with one_line_errors("bam-train"):
                self._report(config)
        except SystemExit as end:  # a failed sweep has failed, whatever becomes of its table
            code = code or int(end.code or 0)
        if code:
            raise SystemExit(code)

    def _report(self, config: DictConfig) -> None:
        """Print the table, if the sweep is one over a table."""
        if (table := config.hydra.runtime.choices.get("experiment")) is not None:
            from bam_exp.reports import write
            from bam_exp.reports.tensorboard import link_tables

            say("", sys.stdout)
            own = [run.names for run in self.runs.values()]
            output_dir = str(Path(config.output_dir).expanduser())
            write.main([table], output_dir, only=own)
            link_tables([table], output_dir)

    @classmethod
    def summarise_interrupted(cls, command: str) -> bool:
        """Say what is done, stopped and not begun of an interrupted sweep, and how it is continued; False if there is none."""
        if cls.active is None:
            return False
        say_interrupted([*cls.active.runs.values()], cls.active.elsewhere, command)
        return True


def _why_unfinished(run: Run) -> str:
    try:
        result_of(run)
    except ConfigError as error:  # the folder holds another run, or a file that is damaged
        return str(error)
    return failure_of(run.folder) or "ended without a result"


def _make_folder(master: DictConfig) -> None:
    """Make the folder that Hydra writes to.

    Raises:
        ConfigError: if it cannot be made.
    """
    sweep_dir = Path(master.hydra.sweep.dir)
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: cannot write to {sweep_dir} ({reason_of(error)})") from error
