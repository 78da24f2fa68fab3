"""Testing trained weights, and naming the classes of photos with them."""

from dataclasses import replace
from pathlib import Path

import torch

from bam_exp.build import build
from bam_exp.config import Chosen
from bam_exp.data.batches import sizes_of_shares
from bam_exp.machine import Machine
from bam_exp.machine.compiling import compile_network
from bam_exp.machine.gpus import gpu_lease
from bam_exp.machine.interruption import interrupted_at_once
from bam_exp.training.lightning import make_trainer
from bam_exp.weights import load_weights


def evaluate(chosen: Chosen, machine: Machine) -> dict[str, float]:
    """The test figures of the weights in the file of the setting `evaluate`; nothing is written.

    It computes on one device, for which it waits as a run does.

    Raises:
        Interrupted: on Ctrl-C.
        ConfigError, DataError: if the file does not fit the network, or the data is missing or damaged.
    """
    machine = replace(machine, devices=1)
    with interrupted_at_once(), gpu_lease(machine):
        return _evaluate(chosen, machine.opened())


def _evaluate(chosen: Chosen, machine: Machine) -> dict[str, float]:
    assert chosen.evaluate is not None
    machine.prepare()
    data, network, task = build(chosen)
    load_weights(network, chosen.evaluate)
    data.prepare()
    network.to(memory_format=torch.channels_last)
    compile_network(network, machine.compile_used, test_sizes=sizes_of_shares(data.test_size, task.batch_size))
    learner = task.learner()
    make_trainer(machine, Path.cwd(), logger=False, callbacks=[], **task.limits).validate(learner, verbose=False)
    return learner.test_figures()
