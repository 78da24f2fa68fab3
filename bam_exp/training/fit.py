"""Training and testing one run, from wherever it stands to its `result.json`."""

import math
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch

from bam_exp.build import Parts, build
from bam_exp.complexity import complexity
from bam_exp.console import say
from bam_exp.data.batches import sizes_of_shares
from bam_exp.errors import Diverged
from bam_exp.machine import Machine, ranks
from bam_exp.machine.compiling import compile_network, graphs_skipped
from bam_exp.machine.interruption import Interruption
from bam_exp.runs.folder import begin, write_picture, write_result
from bam_exp.runs.result import make_result
from bam_exp.runs.run import Run
from bam_exp.tasks.learner import Learner
from bam_exp.training.batch_norm import synchronise
from bam_exp.training.checkpoints import Checkpoints
from bam_exp.training.curves import Curves, SampleImages, settings_of
from bam_exp.training.lightning import make_trainer
from bam_exp.training.precision import settled
from bam_exp.training.progress import Progress
from bam_exp.training.saving import CheckpointSaver
from bam_exp.training.weights import WeightsWriter
from bam_exp.weights import load_weights


def fit(run: Run, parts: Parts, machine: Machine, interruption: Interruption) -> dict[str, Any]:
    """Train and test a run; the caller holds its lock.

    Args:
        parts: of the run, on the meta device; its data is prepared.

    Returns:
        The result, on rank 0. The other ranks write nothing and return an empty one.

    Raises:
        Interrupted: if the run was told to stop; it has saved a checkpoint.
        Diverged, CheckpointError: if it failed.
    """
    machine.prepare()
    cost = complexity(parts.network, parts.data.size)
    learner, machine = _make_learner(run, parts, machine)
    limits = learner.task.limits
    saver = CheckpointSaver(machine, interruption)
    if ranks.rank() != 0:
        trainer = make_trainer(
            machine, run.folder, logger=False, callbacks=[saver], fingerprint=run.fingerprint, **limits
        )
        trainer.fit(learner, ckpt_path=ranks.broadcast(None), weights_only=True)
        learner.evaluate_last()
        return {}
    start = begin(run, machine.precision_used)
    checkpoints, logger = Checkpoints(run.folder, run.fingerprint), Curves(run.folder)
    progress = Progress(run.name, machine.precision_used)
    callbacks = [progress, SampleImages(), saver]
    trainer = make_trainer(
        machine, run.folder, logger=logger, callbacks=callbacks, fingerprint=run.fingerprint, **limits
    )
    logger.describe(run)
    newest = checkpoints.newest(lambda line: say(f"{run.name}: {line}"))
    ranks.broadcast(newest and str(newest))
    if newest is not None:
        learner.trainer = trainer
        learner.restore(checkpoints.load_checkpoint(newest))
    writer = WeightsWriter(run, learner, parts.data, machine)
    trainer.fit(learner, ckpt_path=newest, weights_only=True)
    if learner.evaluate_last() and machine.best_weights:
        writer.write_if_best(learner.history[-1])
    metrics = _finite(learner.metrics())
    writer.write()
    _show_picture(run, learner, logger)
    logger.close(settings_of(run, cost.params))
    checkpoints.keep_only_newest()
    result = make_result(
        run,
        metrics=metrics,
        cost=cost,
        history=learner.history,
        hardware=machine.description(),
        start=start,
        times=progress.summary(),
        details=learner.details(),
    )
    write_result(run, result)
    _print_summary(run, result, graphs_skipped(machine.compile_used))
    return result


def _finite(metrics: dict[str, float | int]) -> dict[str, float | int]:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} after the last step; a smaller recipe.lr may help")
    return metrics


def _show_picture(run: Run, learner: Learner, logger: Curves) -> None:
    """Write the picture of the last evaluation, if the task has one, to the run's folder and to TensorBoard."""
    if learner.picture is not None:
        write_picture(run, learner.picture)
        logger.show(learner.picture)


def _make_learner(run: Run, parts: Parts, machine: Machine) -> tuple[Learner, Machine]:
    """The learner of the run, with a network that is ready to train, and the machine with the precision of the run."""
    pl.seed_everything(run.seed, verbose=False)
    _, network, task = build(run.chosen, data=parts.data)
    first, weights = ranks.rank() == 0, run.chosen.weights
    if weights is not None and (kept := load_weights(network, weights, onto=True)) and first:
        parts_kept = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in kept))
        say(f"{run.name}: initialised at random, because it is not in {weights}: {parts_kept}")
    if first and (advice := task.advice(pretrained=weights is not None)):
        say(f"{run.name}: {advice}")
    network.to(memory_format=torch.channels_last)
    machine = settled(run, machine, network, parts.data.size)
    mode = machine.compile_used
    if ranks.size() > 1 and task.batch_norm_parts == 1:
        synchronise(network, gpu=machine.uses_gpu)
        if machine.compile != "on":
            mode = "off"  # every synchronised layer would end a graph
            if machine.compile == "reduce-overhead" and ranks.rank() == 0:
                say(
                    f"{run.name}: not compiled, in spite of trainer.compile=reduce-overhead: batch normalisation is "
                    "synchronised between the processes"
                )
    shares = partial(sizes_of_shares, batch_size=task.batch_size, rank=ranks.rank(), world_size=ranks.size())
    compile_network(network, mode, train_sizes=shares(parts.data.train_size), test_sizes=shares(parts.data.test_size))
    task.sgd |= machine.sgd_form
    return task.learner(), machine


def _print_summary(run: Run, result: dict[str, Any], skipped: int) -> None:
    threads = torch.get_num_threads()
    memory = result["peak_memory_mib"]
    say(
        f"{run.name}: "
        + ("" if memory is None else f"peak memory {memory:,.0f} MiB, ")
        + f"{threads} CPU thread{'s' * (threads > 1)}, "
        f"data wait {result['data_wait_percent']:.1f} %"
        + (f"; {skipped} graphs SKIPPED, in spite of trainer.compile=reduce-overhead" if skipped else "")
    )
