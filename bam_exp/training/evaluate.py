"""Testing weights from a file."""

from pathlib import Path

import torch

from bam_exp.build import build
from bam_exp.config import Chosen
from bam_exp.errors import ConfigError
from bam_exp.machine import Machine
from bam_exp.training.lightning import make_trainer
from bam_exp.weights import load_weights


def evaluate(chosen: Chosen, machine: Machine) -> dict[str, float]:
    """The test figures of the weights in the file of the setting `evaluate`; nothing is written.

    Raises:
        ConfigError: if the file does not fit the network.
        DataError: if the data is missing or damaged.
    """
    machine = machine.opened()
    machine.prepare()
    data, network, task = build(chosen)
    data.prepare()
    if chosen.evaluate is None:
        raise ConfigError("evaluate: should be a file of weights")
    load_weights(network, chosen.evaluate)
    network.to(memory_format=torch.channels_last)
    learner = task.learner()
    make_trainer(machine, Path.cwd(), logger=False, callbacks=[], **task.limits).validate(learner, verbose=False)
    return learner.test_figures()
