"""Testing trained weights, and naming the classes of photos with them."""

from pathlib import Path

import torch

from bam_exp.build import build
from bam_exp.config import Chosen
from bam_exp.machine import Machine
from bam_exp.machine.compiling import compile_network
from bam_exp.training.lightning import make_trainer
from bam_exp.weights import load_weights


def evaluate(chosen: Chosen, machine: Machine) -> dict[str, float]:
    """The test figures of the weights in the file of the setting `evaluate`; nothing is written.

    Raises:
        ConfigError, DataError: if the file does not fit the network, or the data is missing or damaged.
    """
    assert chosen.evaluate is not None
    machine = machine.opened()
    machine.prepare()
    data, network, task = build(chosen)
    load_weights(network, chosen.evaluate)
    data.prepare()
    network.to(memory_format=torch.channels_last)
    compile_network(network, machine.compile_used)
    learner = task.learner()
    make_trainer(machine, Path.cwd(), logger=False, callbacks=[], **task.limits).validate(learner, verbose=False)
    return learner.test_figures()
