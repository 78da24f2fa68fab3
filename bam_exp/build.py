"""From what was chosen to data set, network, task and machine: the only bridge between configs and the library."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import nn

from bam_exp import __version__
from bam_exp.attention import attach
from bam_exp.config.choices import NAMED
from bam_exp.config.chosen import Chosen
from bam_exp.config.targets import call
from bam_exp.data.dataset import DataSet
from bam_exp.errors import ConfigError
from bam_exp.machine import Machine
from bam_exp.tasks import Task
from bam_exp.weights import Metadata, Preprocessing, check_weights


class Parts(NamedTuple):
    """The parts of a run."""

    data: DataSet
    network: nn.Module
    """The backbone with its attention attached."""
    task: Task


def build_data(chosen: Chosen) -> DataSet:
    """The data set; nothing is read from disk.

    Raises:
        ConfigError: if an argument does not fit.
    """
    data: DataSet = chosen.data.make(chosen.data_root)
    return data


def build(chosen: Chosen, *, data: DataSet | None = None, classes: int | None = None) -> Parts:
    """Data set, network with its attention attached, and task, on the current default device.

    Args:
        data: the data set, if it has been built already.
        classes: the classes of the network's head, if not those of the data.

    Raises:
        ConfigError: if a group's arguments do not fit its callable, or the parts do not fit each other.
    """
    if data is None:
        data = build_data(chosen)
    network: nn.Module = chosen.backbone.make(classes or data.num_classes)
    if data.size < network.min_size:  # type: ignore[operator]  # every backbone has an int
        raise ConfigError(
            f"data: images of {data.size} x {data.size} are too small for this backbone (at least {network.min_size})"
        )
    call("attention", attach, network, chosen.attention.factory, **chosen.attention.arguments)
    return Parts(data, network, chosen.recipe.make(network, data, chosen.seed))


def build_on_meta(chosen: Chosen, *, classes: int | None = None) -> Parts:
    """The same on the meta device: it checks that everything fits, and costs neither memory nor time.

    Raises:
        ConfigError: as `build`.
        DataError: if the weights to start from or to test do not fit the network.
    """
    try:
        with torch.device("meta"):
            parts = build(chosen, classes=classes)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ConfigError(
            f"backbone: this {chosen.backbone.name} is too large ({' '.join(str(error).split())})"
        ) from error
    if chosen.weights is not None:
        check_weights(parts.network, chosen.weights, onto=True)
    if chosen.evaluate is not None:
        check_weights(parts.network, chosen.evaluate)
    return parts


def describe(chosen: Chosen, data: DataSet, *, source: str, overrides: Sequence[str], **measured: Any) -> Metadata:
    """The metadata of a file of this network's weights.

    Args:
        source: where the weights come from.
        overrides: of bam-train, that choose the network, its data and its recipe.
        measured: further fields of `Metadata`.
    """
    preprocessing = None
    if isinstance(mean := getattr(data, "mean", None), tuple):
        preprocessing = Preprocessing(
            resize=getattr(data, "resize", data.size), size=data.size, mean=mean, std=getattr(data, "std", None)
        )
    return Metadata(
        source=source,
        overrides=tuple(overrides),
        config={group: chosen.group(group).settings for group in NAMED},
        classes=tuple(data.class_names()),
        preprocessing=preprocessing,
        versions={"bam_exp": __version__, "torch": version("torch")},
        **measured,
    )


def make_machine(chosen: Chosen) -> Machine:
    """The machine that the trainer group describes.

    Raises:
        ConfigError: if an argument does not fit.
    """
    machine: Machine = chosen.trainer.make()
    return machine


def check_shares(parts: Parts, machine: Machine) -> None:
    """Check that the processes of a run can share its batches.

    Raises:
        ConfigError: naming the key.
    """
    processes, task, data = machine.processes, parts.task, parts.data
    if task.batch_norm_parts not in (1, processes):
        raise ConfigError(
            f"recipe.batch_norm_parts={task.batch_norm_parts}: batch normalisation over {task.batch_norm_parts} parts of a "
            f"batch needs as many processes, and there {'is 1' if processes == 1 else f'are {processes}'} (trainer.devices)"
        )
    if processes == 1:
        return
    size = task.batch_size
    if size < 2 * processes:
        raise ConfigError(f"recipe.batch_size={size}: {processes} processes share it; {2 * processes} or more would do")
    for split, count, least in (
        ("training", data.train_size, 1 + (task.batch_norm_parts > 1)),
        ("test", data.test_size, 1),
    ):
        last = count % size or size
        if last < least * processes:
            raise ConfigError(
                f"recipe.batch_size={size}: the last batch of {count} {split} images would have {last}, too few for "
                f"{processes} processes; choose another"
            )
