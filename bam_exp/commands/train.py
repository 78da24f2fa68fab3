"""`bam-train`: one run, or a sweep of them. It is a Hydra application."""

import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bam_exp import __version__, config, tables
from bam_exp.commands.environment import check_flags, flags_and_overrides, use_environment, value_of
from bam_exp.config import Chosen, extra_folders
from bam_exp.console import INTERRUPTED, ending_at_once, say
from bam_exp.errors import ConfigError
from bam_exp.exits import one_line_errors
from bam_exp.figures import FIGURES
from bam_exp.processes import continued_by

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bam_exp.machine import Machine
    from bam_exp.runs import Run
    from bam_exp.weights import Metadata

_OWN_CONFIG = {"--config-name", "-cn", "--config-path", "-cp"}
_LISTS_OR_OWN = {*_OWN_CONFIG, "--info", "-i", "--hydra-help"}

_typed: list[str] = []
"""The command line as it was typed, to say how an interrupted run is continued."""


def start(cfg: "DictConfig") -> float | None:
    """Run what a config describes; Hydra calls this for a run, or for each job of a sweep.

    A single run trains in this process. A job of a sweep trains in a child process, so that the launcher (basic, joblib,
    submitit) and the other jobs go on whatever the run does to its process.

    Returns:
        The headline figure of the run, for sweepers that search; None if the run failed.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from bam_exp.build import build_on_meta, check_shares, make_machine
    from bam_exp.runs import Run, is_done, result_of

    with one_line_errors("bam-train", _typed):  # here, because Hydra prints lines of its own about errors that reach it
        state = HydraConfig.get()
        if state.job.chdir:
            raise ConfigError("hydra.job.chdir=true: every run has a folder of its own; leave this out")
        if not OmegaConf.is_missing(state.job, "num"):
            use_environment()  # a job of joblib or SLURM begins here, in a process that knows no folders and packages
        chosen = Chosen.of(cfg, state.runtime.choices)
        machine = make_machine(chosen)
        if chosen.evaluate is not None:
            if machine.world.rank == 0:  # one process does it
                _evaluate(chosen, list(state.overrides.task))
            return None
        parts = build_on_meta(chosen)
        run = Run.of(chosen, parts.data.digest)
        if not OmegaConf.is_missing(state.job, "num"):  # only a job of a sweep has a number
            from bam_exp.sweeps.child import train_in_child

            train_in_child(run, machine)
            if not is_done(run):  # the sweep says why when it ends
                return None
        elif (result := result_of(run)) is not None:
            if machine.world.rank == 0:
                figure = FIGURES[parts.task.headline]
                again = _in_another_precision(run, machine, result)
                say(f"{run.name}: done already, {figure.text(result['metrics'][figure.name])}{again}", sys.stdout)
        else:
            machine.check_device()
            check_shares(parts, machine)
            if machine.world.rank == 0 and not machine.world.launched:
                parts.data.prepare()
            from bam_exp.training.train import train  # importing Lightning takes seconds

            train(run, parts, machine, continued_by("bam-train", _typed))
        result = result_of(run)
        return None if result is None else float(result["metrics"][parts.task.headline])


def _in_another_precision(run: "Run", machine: "Machine", result: Mapping[str, Any]) -> str:
    """The end of a sentence, if a run is done in another precision than the one that was typed."""
    used = result["hardware"].get("precision") if isinstance(result.get("hardware"), dict) else None
    if used is None or machine.precision in ("auto", used):
        return ""
    return f" in {used}; to have it in {machine.precision}, move {run.folder} away"


def _evaluate(chosen: Chosen, overrides: Sequence[str]) -> None:
    """Test weights and print the figures, or name the classes of photos.

    A file of weights says of which network they are and how it was tested; what the overrides say takes precedence.
    """
    from bam_exp.build import build_on_meta, make_machine
    from bam_exp.weights import read_metadata

    assert chosen.evaluate is not None
    metadata = read_metadata(chosen.evaluate)
    if metadata is not None:
        chosen = Chosen.of(config.compose(_overridden(metadata, overrides)))
    machine = make_machine(chosen)
    machine.check_device()
    build_on_meta(chosen)
    if chosen.images:
        from bam_exp.training.classify import classify

        for path, classes in classify(chosen):
            named = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in classes)
            say(f"{path}: {named}", sys.stdout)
        return
    from bam_exp.training.evaluate import evaluate

    say(f"{chosen.evaluate}: testing on {chosen.data.name}")
    figures = evaluate(chosen, machine)
    text = ", ".join(FIGURES[name].text(value) for name, value in figures.items() if name in FIGURES)
    say(f"{chosen.evaluate}: {text}  ({figures['images']:.0f} images of {chosen.data.name})", sys.stdout)


def _overridden(metadata: "Metadata", overrides: Sequence[str]) -> list[str]:
    """The overrides of a file of weights, without what the user's override, and then the user's."""
    typed = {str(override.key_or_group) for override in config.parse_overrides(overrides)}
    if any(key.startswith("row/") for key in typed):  # a row chooses all groups
        return list(overrides)
    words = [*metadata.overrides, *([f"trainer.precision={metadata.precision}"] if metadata.precision else [])]
    kept = []
    for word in words:
        key = word.partition("=")[0]
        if key not in ("weights", "seed") and key not in typed and key.partition(".")[0] not in typed:
            kept.append(word)
    return [*kept, *overrides]


def main() -> None:
    """`bam-train`; wrong input ends in one line and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors, instead of printing them over many lines
    _typed[:] = words = sys.argv[1:]
    command = continued_by("bam-train", words)
    with one_line_errors("bam-train", words), ending_at_once("bam-train", command):
        if "--version" in words:
            say(f"bam-train {__version__}", sys.stdout)
            return
        _register_resolvers()
        if words in (["--help"], ["-h"]):
            use_environment()
            say(_help(), sys.stdout)
            return
        if not {"-sc", "--shell-completion"} & set(words):  # which has words of its own
            words = _checked(words)
        else:
            use_environment()
            tables.register()
        sys.argv[1:] = words
        import hydra

        with _interrupted_sweep_summarised():
            hydra.main(version_base="1.3", config_path=str(config.config_dir()), config_name="config")(start)()


def _register_resolvers() -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("choices", lambda group: ", ".join(config.choice_names(group)), replace=True)
    OmegaConf.register_new_resolver("experiments", lambda: ", ".join(tables.table_names()), replace=True)
    OmegaConf.register_new_resolver("expanduser", lambda path: str(Path(path).expanduser()), replace=True)


def _help() -> str:
    """The help of conf/config.yaml as Hydra prints it, without composing a config."""
    from omegaconf import OmegaConf

    from bam_exp.config.strict_yaml import read_yaml

    content: Any = read_yaml(config.config_dir() / "config.yaml")
    text: str = OmegaConf.create(content).hydra.help.template
    return text


@contextmanager
def _interrupted_sweep_summarised() -> Iterator[None]:
    """After a sweep that is interrupted, say what is done and what is not; Hydra does not call its callbacks then."""
    try:
        yield
    except BrokenExecutor as error:
        say("bam-train: a worker of the sweep was killed (out of memory?)")
        _summarise_sweep()
        raise SystemExit(1) from error
    except (SystemExit, KeyboardInterrupt) as end:
        code = INTERRUPTED if isinstance(end, KeyboardInterrupt) else end.code
        stopped = code in {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
        if stopped and _summarise_sweep():
            raise SystemExit(code) from end
        raise


def _summarise_sweep() -> bool:
    """Say what is done and what is not of the sweep of this process; False if there is none."""
    module = sys.modules.get("bam_exp.sweeps.sweep")
    return module is not None and module.Sweep.summarise_interrupted(shlex.join(["bam-train", *_typed]))


def _checked(words: list[str]) -> list[str]:
    """The command line for Hydra, after everything that can be refused before Hydra starts.

    Raises:
        ConfigError: naming the word.
    """
    flags, overrides = flags_and_overrides(words)
    check_flags(flags)
    if "--hydra-help" in flags:
        return ["--hydra-help"]  # with overrides, Hydra would compose a config without bam_exp's keys
    use_environment(value_of(flags, "--config-dir", "-cd"))
    config.check_overrides(overrides)
    parsed = config.parse_overrides(overrides)
    # Hydra copies every row that is registered, many times over, so that they are where something may name or list them.
    if tables.named_by(parsed) or extra_folders() or _LISTS_OR_OWN & set(flags):
        tables.register(parsed)
    # Hydra shows configs (--cfg, --info) without asking us, also one with a key that nothing has.
    if value_of(flags, "--package", "-p") and value_of(flags, "--cfg", "-c") is None:
        raise ConfigError("--package: goes with --cfg only, whose output it limits to a part of the config")
    shown = {"--cfg", "-c", "--info", "-i"} & set(flags) and not _OWN_CONFIG & set(flags)
    if shown and not any(word.is_sweep_override() or word.key_or_group == "experiment" for word in parsed):
        Chosen.of(config.compose(overrides))
    return [*flags, *config.search_path(), *overrides]
