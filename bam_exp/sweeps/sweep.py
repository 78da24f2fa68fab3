"""A sweep: every job is checked before the first one starts, and at the end it says what became of each."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from bam_exp.build import build_on_meta, check_shares, make_machine
from bam_exp.config import Chosen, parse_overrides, swept_values
from bam_exp.console import say
from bam_exp.data.dataset import DataSet
from bam_exp.durations import duration
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors
from bam_exp.files import reason_of
from bam_exp.machine.world import World
from bam_exp.processes import PLACE, SWEEP
from bam_exp.runs.folder import RESULT, failure_of, is_done, result_of
from bam_exp.runs.lock import read_owner, running_elsewhere
from bam_exp.runs.run import Run
from bam_exp.sweeps.interrupted import runs_outlive_workers, say_interrupted
from bam_exp.sweeps.slurm import check_launcher, lost_jobs_recorded


class Sweep(Callback):
    """Hydra's callback of a sweep."""

    active: ClassVar["Sweep | None"] = None
    """The sweep of this process, for the summary when it is interrupted: Hydra calls no callback then."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        """The runs by name."""
        self.jobs: list[Run] = []
        """The run of each job; several jobs may have the same run."""
        self.results: list[str] = []
        """The path of the result of each job."""
        self.held = ExitStack()
        self.started = 0.0
        """The time at which the first job could start, in seconds since 1970."""
        self.done_before = 0
        """The number of runs that were done then."""
        self.elsewhere: set[str] = set()
        """The names of the runs that other processes were training then."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse the whole sweep if one of its jobs is wrong: one line, exit code 2, nothing written."""
        os.environ[SWEEP] = str(os.getpid())
        with one_line_errors("bam-train"):  # Hydra swallows what a callback raises, except for SystemExit
            _check_sweep(config)
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
            self.elsewhere = {name for name, run in self.runs.items() if running_elsewhere(run)}
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
        number, count = int(config.hydra.job.num), len(self.jobs)
        choices = config.hydra.runtime.choices
        row = next((choice for group, choice in choices.items() if group.startswith("row/")), "")
        os.environ[PLACE] = f"{number + 1}{f'/{count}' if count else ''} {row}".rstrip()
        if self.jobs and not is_done(self.jobs[number]):
            say(f"run {number + 1} of {count}{self._time_to_go(number)}", sys.stdout)

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
        for key, chosen in _jobs(master):
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
            if run.name in self.runs:
                continue
            self.runs[run.name] = run
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
                say(f"FAILED  {run.name}: {failure_of(run.folder) or 'ended without a result'}")
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


def _check_sweep(master: DictConfig) -> None:
    """Refuse what no sweep can do.

    Raises:
        ConfigError: naming the key.
    """
    if (world := World.from_environment()).size > 1:
        raise ConfigError(
            f"a sweep starts the processes of its runs itself: trainer.devices=…, without {world.starter}"
        )
    for override in parse_overrides(_typed(master)):
        if override.key_or_group == "experiment" and override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: one table at a time; start a sweep for each")
    check_launcher(master.hydra.runtime.choices["hydra/launcher"])
    if master.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true: every run has a folder of its own; leave this out")


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


def _typed(master: DictConfig) -> list[str]:
    """The overrides of the sweep, with interpolations as they were typed: each job resolves its own."""
    overrides: list[str] = OmegaConf.to_container(master.hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    return overrides


def _jobs(master: DictConfig) -> Iterator[tuple[tuple[str, ...], Chosen]]:
    """What each job chooses: the product of the values of all overrides, of which the last for a key counts.

    Before it stands a key that is the same for jobs that differ by their seed only, of which one is composed and to be checked.
    """
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
    overrides = parse_overrides([*words, *_typed(master)], loader)
    values = {override.get_key_element(): swept_values(override) for override in overrides}
    composed: dict[tuple[str, ...], Chosen] = {}
    for job in product(*values.values()):
        job_words = {key: f"{key}={value}" for key, value in zip(values, job, strict=True)}
        seed = job_words.pop("seed", "").removeprefix("seed=")
        apart_from_seed = tuple(job_words.values())
        if apart_from_seed in composed and seed.isdecimal() and seed == str(int(seed)) and int(seed) < 2**31:
            yield apart_from_seed, composed[apart_from_seed].with_seed(int(seed))
            continue
        cfg = loader.load_sweep_config(master, [*apart_from_seed, *([f"seed={seed}"] if seed else [])])
        chosen = Chosen.of(cfg, cfg.hydra.runtime.choices)
        if _interpolates(cfg):  # perhaps the seed
            yield (*apart_from_seed, seed), chosen
        else:
            composed[apart_from_seed] = chosen
            yield apart_from_seed, chosen


def _interpolates(cfg: DictConfig) -> bool:
    """Return whether a value outside Hydra's own settings refers to another."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return "${" in OmegaConf.to_yaml(own, resolve=False)
