"""A sweep: every job is checked before the first one starts, and at the end it says what became of each."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bam_exp.build import build_on_meta, check_shares, make_machine
from bam_exp.config import Chosen, parse_overrides, swept_values
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors
from bam_exp.machine.world import World
from bam_exp.runs.folder import failure_of, is_done, result_of
from bam_exp.runs.run import Run
from bam_exp.sweeps.child import SWEEP
from bam_exp.sweeps.slurm import lost_jobs_recorded


class Sweep(Callback):
    """Hydra's callback of a sweep."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        """The runs by name."""
        self.jobs: list[Run] = []
        """The run of each job; several jobs may have the same run."""
        self.held = ExitStack()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse the whole sweep if one of its jobs is wrong: one line, exit code 2, nothing written."""
        os.environ[SWEEP] = str(os.getpid())
        with one_line_errors("bam-train"):  # Hydra swallows what a callback raises, except for SystemExit
            self._check(config)
        done = sum(is_done(run) for run in self.runs.values())
        print(f"{len(self.runs)} runs: {done} done already, {len(self.runs) - done} to run", flush=True)
        if done == len(self.runs):
            print("nothing left to run")
            self._report(config)
            raise SystemExit(0)
        if "submitit" in config.hydra.runtime.choices["hydra/launcher"]:
            self.held.enter_context(lost_jobs_recorded(self.jobs))

    def _check(self, master: DictConfig) -> None:
        if (world := World.from_environment()).size > 1:
            raise ConfigError(
                f"a sweep starts the processes of its runs itself: trainer.devices=…, without {world.starter}"
            )
        remote = master.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm"  # its nodes may have GPUs
        prepared: set[str] = set()
        for cfg in _jobs(master):
            chosen = Chosen.of(cfg, cfg.hydra.runtime.choices)
            parts, machine = build_on_meta(chosen), make_machine(chosen)
            run = Run.of(chosen, parts.data.digest)
            self.jobs.append(run)
            if not remote:
                machine.check_device()
            if not remote or machine.devices != "auto":
                check_shares(parts, machine)
            if run.name in self.runs:
                continue
            self.runs[run.name] = run
            if result_of(run) is None and run.names["data"] not in prepared:
                parts.data.prepare()
                prepared.add(run.names["data"])

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print a line for each run that failed, and end with exit code 1 if one did."""
        self.held.close()
        failed = {
            run.name: failure_of(run.folder) or "ended without a result"
            for run in self.runs.values()
            if not is_done(run)
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
        """Print the table, if the sweep is one over a table."""
        if (table := config.hydra.runtime.choices.get("experiment")) is not None:
            from bam_exp.reports import report

            print()
            report.main([table], config.output_dir)


def _jobs(master: DictConfig) -> Iterator[DictConfig]:
    """The config of each job: the product of the values of all overrides, of which the last for a key counts."""
    loader = GlobalHydra.instance().config_loader()
    words = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()]
    overrides = parse_overrides([*words, *master.hydra.overrides.task], loader)
    values = {override.get_key_element(): swept_values(override) for override in overrides}
    for job in product(*values.values()):
        yield loader.load_sweep_config(master, [f"{key}={value}" for key, value in zip(values, job, strict=True)])
