"""Each run of a sweep in a process of its own, so that it fails alone: locks, GPU leases, and the sweep's summary."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from bam_exp.config import choices as config
from bam_exp.config.choices import ConfigError
from bam_exp.data import DataError
from bam_exp.files import read_json, write_atomically
from bam_exp.machine.interruption import PARENT, Interrupted, Interruption
from bam_exp.machine.machine import Machine, ranks
from bam_exp.machine.ranks import RankFailed, World
from bam_exp.runs.lock import Busy, claimed, leased
from bam_exp.runs.run import Run, check_shares, evaluate, execute, machine, result_of

SWEEP = "BAM_EXP_SWEEP"
"""Environment variable with the process id of the sweep, by which a launcher's worker knows its parent."""

SLURM_ENDS_S = 600
"""How long a job that SLURM told to stop waits for SLURM to end it (its GraceTime and KillWait)."""


def start(cfg: DictConfig) -> None:
    """What Hydra calls for a run, or for each job of a sweep.

    A run by itself trains here. A job of a sweep becomes a process of its own, started with the same overrides and waited
    for: whatever the run does to its process, the launcher (basic, joblib, submitit) and the other jobs go on.
    """
    hydra = HydraConfig.get()
    try:
        run = Run.of(cfg, hydra.runtime.choices)
        first = World.outside().rank == 0
        if cfg.evaluate is not None:
            if not first:  # one process is enough
                return
            figures = evaluate(cfg)
            print(
                f"{cfg.evaluate}: top-1 error {figures['top1_error']:.2f} %, top-5 error {figures['top5_error']:.2f} %"
                f"  ({figures['images']:.0f} images of {run.names['data']})"
            )
        elif not OmegaConf.is_missing(hydra.job, "num"):  # a job of a sweep has a number
            _in_child(run, machine(cfg), list(hydra.overrides.task))
        elif (result := result_of(run)) is not None:
            if first:
                print(f"{run.name}: done already, top-1 error {result['metrics']['top1_error']:.2f} %")
        else:
            here = machine(cfg)
            here.check_device()
            check_shares(cfg, here)
            if first:
                build_data(cfg).prepare()
            train_here(run, cfg, list(hydra.overrides.task))
    except Exception as error:  # here, because Hydra adds lines of its own to what reaches it
        refuse(error)


def build_data(cfg: DictConfig) -> Any:
    """The data set of a config, nothing read."""
    kind, knobs = config.arguments(cfg, "data")
    assert kind is not None
    return config.call("data", kind, Path(cfg.data_root), **knobs)


def train_here(run: Run, cfg: DictConfig, words: Sequence[str] = ()) -> None:
    """Train a run in this process, holding its lock and a GPU; `words` of the command line start its other ranks, if any.

    Raises:
        SystemExit: 1 if it failed, 128 + the signal if it was told to stop.
        Busy: if another process has it.
    """
    interruption = Interruption()
    interruption.listen()
    here = machine(cfg)
    first = World.outside().rank == 0

    def lost(reason: str, trace: str = "") -> None:
        print(f"bam-train: {run.name} failed: {_failed(run, reason, trace)}", file=sys.stderr, flush=True)

    try:
        with ranks.joined(here.processes, words, lost) as group, ExitStack() as held:
            gpus: list[str] = []
            if first:
                held.enter_context(claimed(run))
                gpus = held.enter_context(leased(here))
            # It may have been finished by another process while this one waited for a GPU.
            done, gpus = group.from_first([first and result_of(run) is not None, gpus])
            if done:
                return
            group.form(gpu=(gpus[ranks.rank()] if gpus else World.outside().gpu()) if here.uses_gpu else None)
            result = execute(run, cfg, interruption)
    except Interrupted as stop:
        if first:
            typed = shlex.join(word for word in words or run.overrides if not word.startswith("hydra."))
            print(f"{run.name}: stopped, its checkpoint is saved; continue with: bam-train {typed}", file=sys.stderr)
        raise SystemExit(128 + stop.number) from stop
    except (Busy, ConfigError):
        raise
    except Exception as error:
        from bam_exp.training.checkpoints import CheckpointError

        if not isinstance(error, CheckpointError | DataError | RankFailed):  # these say all in their line
            traceback.print_exc()
        if first:
            lost(ranks.line(error), traceback.format_exc())
        raise SystemExit(1) from error
    if first:
        print(f"{run.name}: top-1 error {result['metrics']['top1_error']:.2f} %  ({run.folder / 'result.json'})")


def _in_child(run: Run, here: Machine, overrides: list[str]) -> None:
    """Train a run in a process of its own and wait for it; what became of it stands in its folder."""
    if _is_done(run):
        return
    (run.folder / "error.json").unlink(missing_ok=True)
    try:
        here.check_device()
    except ValueError as error:
        _failed(run, config.one_line(error), "")
        return
    command = [sys.executable, "-m", "bam_exp", *overrides, "hydra.mode=RUN"]
    # In a session of its own: Ctrl-C in a terminal reaches only the sweep, which passes it on once.
    child = subprocess.Popen(command, start_new_session=True, env={**os.environ, PARENT: str(os.getpid())})
    limit, reason = here.time_limit_minutes, None
    try:
        with _passed_on(child) as received:
            code = _wait(child, limit)
    except subprocess.TimeoutExpired:
        child.kill()
        code, reason = child.wait(), f"ran longer than trainer.time_limit_minutes={limit}"
    except BaseException as error:  # submitit's handler of USR2: the run saves its checkpoint and goes
        child.terminate()
        child.wait()
        if not isinstance(error, Exception):  # its way of putting the job back into the queue
            raise
        code, reason = 0, config.one_line(error)
    if received:
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and code == 128 + signal.SIGTERM:
            # Pre-emption: SLURM puts a job back into the queue only if it is still there when SLURM ends it. (A sweep that
            # was started by hand inside an allocation ends at once.)
            time.sleep(SLURM_ENDS_S)
        raise SystemExit(128 + received[0])
    if code < 0 and reason is None:
        reason = f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        reason = f"stopped by {signal.Signals(code - 128).name}; its checkpoint is saved"
    if reason is not None:
        _failed(run, reason, "")


def _wait(child: "subprocess.Popen[bytes]", limit: float | None) -> int:
    """Exit code of the child; a worker whose sweep is gone (joblib's workers outlive it) ends the child first.

    Raises:
        subprocess.TimeoutExpired: after `limit` minutes.
    """
    sweep, end = os.getppid(), limit and time.monotonic() + limit * 60
    worker = os.environ.get(SWEEP) == str(sweep)
    while True:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if end and time.monotonic() > end:
                raise
            if worker and os.getppid() != sweep:
                child.terminate()


@contextmanager
def _passed_on(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the child; yields those that came."""
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        child.send_signal(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # Also in place of submitit's handler, which ignores SIGTERM; its USR2 stays.
        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_done(run: Run) -> bool:
    try:
        return result_of(run) is not None
    except ConfigError:
        return False


def _failed(run: Run, reason: str, trace: str) -> str:
    """Keep why a run failed in its folder, where `status` and the sweep's summary read it."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(run.folder / "error.json", json.dumps({"reason": reason, "traceback": trace}, indent=1) + "\n")
    except OSError as error:
        return f"{reason} (and its folder cannot be written: {error.strerror})"
    return reason


class Sweep(Callback):
    """Checks every job of a sweep before the first one starts, and says at the end what became of each."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.jobs: list[Run] = []  # of each job; several may be of one run

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse the whole sweep if one job of it is wrong (one line, exit code 2, nothing written)."""
        os.environ[SWEEP] = str(os.getpid())
        try:
            self._check(config)
        except Exception as error:  # Hydra swallows what a callback raises, save for this
            refuse(error)
        done = sum(_is_done(run) for run in self.runs)
        print(f"{len(self.runs)} runs: {done} done already, {len(self.runs) - done} to run", flush=True)
        if done == len(self.runs):
            print("nothing left to run")
            self._report(config)
            raise SystemExit(0)
        if "submitit" in config.hydra.runtime.choices["hydra/launcher"]:
            self._outlive_lost_jobs()

    def _outlive_lost_jobs(self) -> None:
        """Let a job that SLURM has lost count as a failed run; submitit would raise in the middle of the sweep."""
        from submitit import Job
        from submitit.core.utils import UncompletedJobError

        wait_for: Any = Job.results
        runs = iter(self.jobs)  # the launcher asks for results in the order of its jobs

        def results(job: Any) -> list[JobReturn]:
            run = next(runs)
            try:
                returned: list[JobReturn] = wait_for(job)
            except UncompletedJobError as error:
                reason = str(error).partition("\n")[0] if job.state == "COMPLETED" else f"job lost (state {job.state})"
                print(f"{run.name}: {reason}; its log is {job.paths.stderr}", file=sys.stderr, flush=True)
                if not _is_done(run):
                    _failed(run, reason, "")
                return [JobReturn(status=JobStatus.COMPLETED)]
            return returned

        setattr(Job, "results", results)  # noqa: B010  as mypy has it

    def _check(self, master: DictConfig) -> None:
        if (world := World.outside()).size > 1:
            raise ConfigError(
                f"a sweep starts the processes of its runs itself: trainer.devices=…, without {world.starter}"
            )
        loader = GlobalHydra.instance().config_loader()
        words = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
        words += list(master.hydra.overrides.task)
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        remote = master.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm"  # nodes may have GPUs
        prepared: dict[str, None] = {}
        for job in BasicSweeper.split_arguments(overrides, None)[0]:
            cfg = loader.load_sweep_config(master, list(job))
            run = Run.of(cfg, cfg.hydra.runtime.choices)
            self.jobs.append(run)
            here = machine(cfg)
            if not remote:
                here.check_device()
            if not remote or here.devices != "auto":
                check_shares(cfg, here)
            if run in self.runs:
                continue
            self.runs.append(run)
            if result_of(run) is None and run.names["data"] not in prepared:
                build_data(cfg).prepare()
                prepared[run.names["data"]] = None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """A line for each run that failed, and the exit code."""
        failed = {
            run.name: read_json(run.folder / "error.json").get("reason", "ended without a result")
            for run in self.runs
            if not _is_done(run)
        }
        for name, reason in failed.items():
            print(f"FAILED  {name}: {reason}", file=sys.stderr)
        print(
            f"{len(self.runs) - len(failed)} of {len(self.runs)} runs done"
            + (f", {len(failed)} failed; the same command runs what is missing" if failed else "")
        )
        self._report(config)
        if failed:
            raise SystemExit(1)

    def _report(self, config: DictConfig) -> None:
        """The table as it now stands, where the sweep was one over a table."""
        if (table := config.hydra.runtime.choices.get("experiment")) is not None:
            from bam_exp.reports import report

            print()
            report.main([table], config.output_dir)


def refuse(error: BaseException) -> None:
    """End with one line: exit code 2 for what was typed wrong, 1 for a run that another process has.

    Raises:
        SystemExit: always, or the error itself if it is neither.
    """
    if isinstance(error, Busy):
        print(f"bam-train: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    if isinstance(error, config.REFUSED):
        if World.outside().local_rank == 0:  # a line for each machine
            print(f"bam-train: {config.one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    raise error
