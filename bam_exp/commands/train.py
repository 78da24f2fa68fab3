"""`bam-train`: one run, or a sweep of them. It is a Hydra application."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bam_exp import config, tables
from bam_exp.build import build_on_meta, check_shares, make_machine
from bam_exp.config import Chosen
from bam_exp.exits import one_line_errors
from bam_exp.figures import FIGURES
from bam_exp.machine import Machine
from bam_exp.machine.world import World
from bam_exp.runs.folder import result_of
from bam_exp.runs.run import Run


def start(cfg: DictConfig) -> None:
    """Run what a config describes; Hydra calls this for a run, or for each job of a sweep.

    A single run trains in this process. A job of a sweep trains in a child process, so that the launcher (basic, joblib,
    submitit) and the other jobs go on whatever the run does to its process.
    """
    with one_line_errors("bam-train"):  # here, because Hydra prints lines of its own about errors that reach it
        state = HydraConfig.get()
        chosen = Chosen.of(cfg, state.runtime.choices)
        machine, overrides = make_machine(chosen), list(state.overrides.task)
        if chosen.evaluate is not None:
            _evaluate(chosen, machine)
            return
        parts = build_on_meta(chosen)
        run = Run.of(chosen, parts.data.digest)
        if not OmegaConf.is_missing(state.job, "num"):  # only a job of a sweep has a number
            from bam_exp.sweeps.child import train_in_child

            train_in_child(run, machine, overrides)
            return
        first = World.from_environment().rank == 0
        if (result := result_of(run)) is not None:
            if first:
                figure = FIGURES[parts.task.headline]
                print(f"{run.name}: done already, {figure.text(result['metrics'][figure.name])}")
            return
        machine.check_device()
        check_shares(parts, machine)
        if first:
            parts.data.prepare()
        from bam_exp.training.train import train  # importing Lightning takes seconds

        train(run, parts, machine, overrides)


def _evaluate(chosen: Chosen, machine: Machine) -> None:
    """Test weights and print the figures; one process does it."""
    if World.from_environment().rank != 0:
        return
    machine.check_device()
    from bam_exp.training.evaluate import evaluate

    figures = evaluate(chosen, machine)
    text = ", ".join(FIGURES[name].text(value) for name, value in figures.items() if name in FIGURES)
    print(f"{chosen.evaluate}: {text}  ({figures['images']:.0f} images of {chosen.data.name})")


def main() -> None:
    """`bam-train`; wrong input ends in one line and exit code 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises errors, instead of printing them over many lines
    OmegaConf.register_new_resolver("choices", lambda group: ", ".join(config.choice_names(group)), replace=True)
    OmegaConf.register_new_resolver("experiments", lambda: ", ".join(tables.trained_tables()), replace=True)
    with one_line_errors("bam-train"):
        overrides = [word for word in sys.argv[1:] if not word.startswith("-") and "=" in word]
        config.check_overrides(overrides)
        tables.register(config.parse_overrides(overrides))
        hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="config")(start)()
