"""A run: what was chosen, its name, folder and fingerprint, and the way from there to its result."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from bam_exp import __version__
from bam_exp.attention import attach
from bam_exp.config import choices as config
from bam_exp.config.choices import ConfigError
from bam_exp.files import write_atomically
from bam_exp.machine.interruption import Interruption
from bam_exp.machine.machine import Machine, ranks
from bam_exp.training.batch_norm import synchronise
from bam_exp.weights import load_weights

OWNER = "owner.json"
"""In the folder of a run that is being trained: by which process (see `locks`)."""

PROGRESS = "progress.json"
"""Beside it: how far it is (see `progress`)."""

SCHEMA = 1
"""Raised when the same config would give another number than before; older results are then stale."""

NAMED = ("data", "backbone", "attention", "recipe")
"""The groups that can change a number, in the order of a run's folder."""


@dataclass(frozen=True)
class Run:
    """One row with one seed, before it is trained."""

    names: Mapping[str, str]
    """Of each group: the choice, and what was changed, as `bam-reduction8`."""
    overrides: tuple[str, ...]
    """What one would type to get it."""
    seed: int
    figures_from: Mapping[str, Any]
    """Everything that can change the number: the resolved groups, the digest of the data, the schema."""
    essence: Mapping[str, Any]
    """The same without what equals the default of its callable, so that a new knob with a default makes no result stale."""
    root: Path = field(compare=False)
    """The `runs` folder."""

    @classmethod
    def of(cls, cfg: DictConfig, choices: Mapping[str, str]) -> "Run":
        """The run that a config describes; `choices` are Hydra's, group to chosen file.

        Raises:
            ConfigError: if the config cannot be run (the networks are built on the meta device to find out).
        """
        config.check_top(cfg)
        names, overrides, groups, essence = {}, [], {}, {}
        for group in NAMED:
            kind, arguments = config.arguments(cfg, group)
            choice = str(choices[group])
            defaults = config.choice_file(group, choice)
            changed = {key: value for key, value in arguments.items() if key not in defaults or value != defaults[key]}
            names[group] = choice + "".join(f"-{_word(key, value)}" for key, value in changed.items())
            overrides += [f"{group}={choice}", *(f"{group}.{key}={_typed(value)}" for key, value in changed.items())]
            target = {"_target_": cfg[group].get("_target_")}
            knobs = config.knobs(group, kind)
            groups[group] = {**target, **arguments}
            essence[group] = {
                **target,
                **{key: value for key, value in arguments.items() if knobs[key].default != value},
            }
        seed = int(cfg.seed)
        with torch.device("meta"):
            data, _, _ = build(cfg)
        first = {"schema": SCHEMA, "seed": seed, "data_digest": data.digest}
        if cfg.weights is not None:
            names["backbone"] += f"-{_word('weights', Path(cfg.weights).stem)}"
            overrides.append(f"weights={cfg.weights}")
            with Path(cfg.weights).open("rb") as file:
                first["weights"] = hashlib.file_digest(file, "sha256").hexdigest()
        root = Path(cfg.output_dir) / "runs"
        return cls(names, (*overrides, f"seed={seed}"), seed, {**first, **groups}, {**first, **essence}, root)

    def with_seed(self, seed: int) -> "Run":
        """The same row with another seed."""
        overrides = (*self.overrides[:-1], f"seed={seed}")
        figures_from, essence = {**self.figures_from, "seed": seed}, {**self.essence, "seed": seed}
        return replace(self, seed=seed, overrides=overrides, figures_from=figures_from, essence=essence)

    @property
    def name(self) -> str:
        """`data/backbone/attention/recipe/seed<k>`: of the folder, in TensorBoard and in runs.csv."""
        return "/".join([*(self.names[group] for group in NAMED), f"seed{self.seed}"])

    @property
    def folder(self) -> Path:
        """Where it lives."""
        return self.root / self.name

    @property
    def fingerprint(self) -> str:
        """Digest of everything that can change the number."""
        return hashlib.sha256(json.dumps(self.essence, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def command(self) -> str:
        """What one would type."""
        return "bam-train " + " ".join(self.overrides)


def build(cfg: DictConfig, *, classes: int | None = None) -> tuple[Any, nn.Module, Any]:
    """Data set, network with its attention attached, and task, on the current default device.

    `classes` gives the network's head another number of classes than the data has.

    Raises:
        ConfigError: if a group's arguments do not fit its callable, or the parts do not fit each other.
    """
    kinds = {group: config.arguments(cfg, group) for group in config.GROUPS}
    data = _make(kinds, "data", Path(cfg.data_root))
    network = _make(kinds, "backbone", classes or data.num_classes)
    if data.size < network.min_size:
        raise ConfigError(
            f"data: images of {data.size} x {data.size} are too small for this backbone (at least {network.min_size})"
        )
    kind, knobs = kinds["attention"]
    config.call("attention", attach, network, kind, **knobs)
    task = _make(kinds, "recipe", network, data, int(cfg.seed))
    return data, network, task


def machine(cfg: DictConfig) -> Machine:
    """The machine that the trainer group describes.

    Raises:
        ConfigError: if it cannot be had.
    """
    kind, knobs = config.arguments(cfg, "trainer")
    assert kind is not None
    made: Machine = config.call("trainer", kind, **knobs)
    return made


def check_shares(cfg: DictConfig, here: Machine) -> None:
    """Refuse a batch that the processes of a run cannot share.

    Raises:
        ConfigError: naming the key.
    """
    processes = here.processes
    parts = config.arguments(cfg, "recipe")[1].get("batch_norm_parts", 1)
    if parts not in (1, processes):
        raise ConfigError(
            f"recipe.batch_norm_parts={parts}: batch normalisation over {parts} parts of a batch needs as many processes, "
            f"and there {'is 1' if processes == 1 else f'are {processes}'} (trainer.devices)"
        )
    if processes == 1:
        return
    with torch.device("meta"):
        data, _, task = build(cfg)
    size = task.batch_size
    if size < 2 * processes:
        raise ConfigError(f"recipe.batch_size={size}: {processes} processes share it; {2 * processes} or more would do")
    for split, count, least in (("training", data.train_size, 1 + (parts > 1)), ("test", data.test_size, 1)):
        last = count % size or size
        if last < least * processes:
            raise ConfigError(
                f"recipe.batch_size={size}: the last batch of {count} {split} images would have {last}, too few for "
                f"{processes} processes; choose another"
            )


def result_of(run: Run) -> dict[str, Any] | None:
    """The result of a finished run, None if it is not finished.

    Raises:
        ConfigError: if the folder holds a run of another fingerprint, or something that is no result.
    """
    path = run.folder / "result.json"
    begun = run.folder / "run.json"
    for file in (path, begun):
        if not file.is_file():
            continue
        try:
            content: dict[str, Any] = json.loads(file.read_text())
            found = content["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}: not a file of bam_exp ({error}); move its folder away to run it again"
            ) from error
        if found != run.fingerprint:
            raise ConfigError(
                f"{run.folder}: holds a run with another fingerprint ({found}, this one is {run.fingerprint}): the same name, "
                f"but {_difference(content.get('figures_from'), run.figures_from)}; move the folder away to run it again"
            )
        if file == path:
            return content
    return None


def execute(run: Run, cfg: DictConfig, interruption: Interruption) -> dict[str, Any]:
    """Train and test one run from wherever it stands, to its `result.json`; the caller holds the run's lock.

    Of several ranks the first returns the result, and the others, which write nothing, an empty one.

    Raises:
        Interrupted: told to stop; a checkpoint is there.
        Diverged, CheckpointError, ...: the run failed.
    """
    import pytorch_lightning as pl

    from bam_exp.complexity import complexity
    from bam_exp.training.checkpoints import Checkpoints
    from bam_exp.training.lightning import Keeper, trainer_for
    from bam_exp.training.progress import Curves, Progress

    here, first = machine(cfg), ranks.rank() == 0
    here.prepare()
    with torch.device("meta"):
        data, network, _ = build(cfg)
        cost = complexity(network, data.size)
    if first:
        data.prepare()
    pl.seed_everything(run.seed, verbose=False)
    data, network, task = build(cfg)
    if cfg.weights is not None:
        load_weights(network, Path(cfg.weights), onto=True)
    network.to(memory_format=torch.channels_last)
    if ranks.size() > 1 and task.batch_norm_parts == 1:
        synchronise(network, gpu=here.uses_gpu)
        compiled = here.compile == "on"  # every layer would be a graph of its own
    else:
        compiled = True
    if compiled:
        here.compile_network(network)
    task.sgd |= here.sgd_form
    learner = task.learner()

    checkpoints, keeper = Checkpoints(run.folder), Keeper(here, interruption)
    if not first:
        trainer = trainer_for(here, run.folder, logger=False, callbacks=[keeper], **task.limits)
        trainer.fit(learner, ckpt_path=ranks.from_first(None), weights_only=True)
        learner.evaluate_last()
        return {}
    started = _begin(run)
    logger = Curves(run.folder)
    progress = Progress(run.name)
    trainer = trainer_for(here, run.folder, logger=logger, callbacks=[progress, keeper], **task.limits)
    newest = checkpoints.newest(lambda line: print(f"{run.name}: {line}", file=sys.stderr))
    ranks.from_first(newest and str(newest))
    if newest is not None:
        learner.history = checkpoints.load_checkpoint(newest)["history"]
        learner.trainer = trainer
        learner.replay()
    trainer.fit(learner, ckpt_path=newest, weights_only=True)
    learner.evaluate_last()

    metrics = learner.metrics()
    logger.close({"seed": run.seed, **run.names}, metrics["top1_error"])
    checkpoints.keep_only_newest()
    result = {
        "schema": SCHEMA,
        "run": {**run.names, "seed": run.seed},
        "command": run.command,
        "fingerprint": run.fingerprint,
        "figures_from": run.figures_from,
        "metrics": metrics,
        "params": cost.params,
        "macs": cost.macs,
        "epochs": learner.history,
        "times": progress.times,
        "hardware": here.description(),
        "versions": {
            "bam_exp": __version__,
            **{name: version(name) for name in ("torch", "torchvision", "pytorch-lightning")},
        },
        **_commit(),
        "start": started,
        "end": _now(),
        "seconds_per_epoch": progress.seconds_per_epoch(),
        "data_wait_percent": progress.data_wait_percent(),
        "peak_memory_mib": progress.peak_memory_mib(),
    }
    # Before the result: killed after it, the run is done and nobody would come back to clear up.
    for passing in ("error.json", PROGRESS, OWNER):
        (run.folder / passing).unlink(missing_ok=True)
    write_atomically(run.folder / "result.json", json.dumps(result, indent=1) + "\n")
    threads, skipped = torch.get_num_threads(), here.graphs_skipped()
    print(
        f"{run.name}: peak memory {result['peak_memory_mib']:,.0f} MiB, {threads} CPU thread{'s' * (threads > 1)}, "
        f"data wait {result['data_wait_percent']:.1f} %"
        + (f"; {skipped} graphs SKIPPED, in spite of trainer.compile=reduce-overhead" if skipped else ""),
        file=sys.stderr,
    )
    return result


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Test figures of the weights in the file of the setting `evaluate`; leaves nothing behind.

    Raises:
        ConfigError: if the file is not of this network.
    """
    from bam_exp.training.lightning import trainer_for

    here = machine(cfg)
    here.check_device()
    here.prepare()
    data, network, task = build(cfg)
    data.prepare()
    load_weights(network, Path(cfg.evaluate))
    network.to(memory_format=torch.channels_last)
    learner = task.learner()
    trainer_for(here, Path.cwd(), logger=False, callbacks=[], **task.limits).validate(learner, verbose=False)
    figures: dict[str, float] = learner.test_figures()
    return figures


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _begin(run: Run) -> str:
    """Write `run.json`, which claims the folder for this fingerprint; the time of the first start."""
    begun = run.folder / "run.json"
    if begun.is_file():
        return str(json.loads(begun.read_text())["start"])
    start = _now()
    content = {"fingerprint": run.fingerprint, "command": run.command, "start": start, "figures_from": run.figures_from}
    write_atomically(begun, json.dumps(content, indent=1) + "\n")
    return start


def _make(kinds: Mapping[str, tuple[Any, dict[str, Any]]], group: str, *context: Any) -> Any:
    kind, knobs = kinds[group]
    return config.call(group, kind, *context, **knobs)


def _word(key: str, value: object) -> str:
    """`reduction8`, `combine_max`: letters, digits and `._+-` only."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = "".join(
        character if character.isalnum() or character in "._+-" else "_" for character in text.replace(" ", "")
    )
    return f"{key}{text}" if text[:1].isdigit() else f"{key}_{text.strip('_')}"


def _typed(value: object) -> str:
    """A value as Hydra's command line reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_typed(one) for one in value) + "]"
    return str(value)


def _difference(before: object, now: Mapping[str, Any]) -> str:
    if not isinstance(before, dict):
        return "another content"
    for key, value in now.items():
        old = before.get(key)
        if old != value:
            if isinstance(value, dict) and isinstance(old, dict):
                for inner in {**old, **value}:
                    if old.get(inner) != value.get(inner):
                        return f"{key}.{inner} was {old.get(inner)}, now {value.get(inner)}"
            return f"{key} was {old}, now {value}"
    return "another content"


def _commit() -> dict[str, Any]:
    """Commit of the code and whether its tree was dirty; None where it is not run from a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", __file__):
            # What a run makes or its table becomes does not make the code dirty.
            changed = git("status", "--porcelain", "--", ":/", ":(exclude,top)results", ":(exclude,top)runs")
            return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"commit": None, "dirty": None}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
