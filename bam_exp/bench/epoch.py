"""`bam-bench epoch`: what a loop adds to a step, and whole epochs through `bam-train`."""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from bam_exp.bench.forms import network_of
from bam_exp.bench.input import peer_loader
from bam_exp.bench.measure import Bench, Row, say, spread
from bam_exp.bench.step import Step, ladder
from bam_exp.data import DeviceLoader, Shapes
from bam_exp.machine.interruption import Interruption
from bam_exp.machine.machine import Machine
from bam_exp.tasks import Classification
from bam_exp.training.curves import Curves
from bam_exp.training.lightning import make_trainer
from bam_exp.training.progress import Progress
from bam_exp.training.saving import CheckpointSaver


def rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """What a loop adds to a step, and whole epochs through bam-train."""
    return [*_loops(bench), *_epochs(bench, options)]


# Around a step

STEPS, SKIPPED, BATCH = 300, 40, 20


class _Clock(pl.Callback):
    """From the first step that counts to the start of the last."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.seconds = now, 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == SKIPPED:
            self.seconds = -self.now()
        if batch_idx == STEPS - 1:
            self.seconds += self.now()


class _Plain(pl.LightningModule):
    """Lightning, and nothing logged."""

    def __init__(self, task: Classification) -> None:
        super().__init__()
        self.network, self.sgd = task.network, task.sgd
        self.mean = torchmetrics.MeanMetric()
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=task.data.num_classes)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.network.parameters(), **self.sgd)

    def training_step(self, given: tuple[Tensor, Tensor], _index: int) -> Tensor:
        return F.cross_entropy(self.network(given[0]), given[1])


class _Logging(_Plain):
    """The typical peer's: two torchmetrics and two `self.log` in every step; our own re-implementation."""

    def training_step(self, given: tuple[Tensor, Tensor], _index: int) -> Tensor:
        logits = self.network(given[0])
        loss = F.cross_entropy(logits, given[1])
        self.mean(loss)
        self.accuracy(logits, given[1])
        self.log("train/loss", self.mean, on_step=False, on_epoch=True)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss


class _Deaf(Interruption):
    """Leaves the signals to the benchmark."""

    def listen(self) -> None:
        pass


def _loops(bench: Bench) -> list[Row]:
    """Host time a step of four loops around a network that costs next to nothing."""
    data = Shapes(Path(), train_size=BATCH * STEPS, test_size=20)
    here = Machine(device=cast(Any, bench.device.type), threads=bench.threads, compile="off", precision="float32")
    here.prepare()
    images, labels = data.load("train")
    loader = DeviceLoader(
        images, labels, batch_size=BATCH, mean=data.mean, std=data.std, seed=0, device=bench.device, pad=2, flip=True
    )
    clock = _Clock(time.process_time if bench.threads == 1 and not bench.cuda else time.perf_counter)

    def task() -> Classification:
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, data.num_classes))
        made = Classification(network.to(bench.device), data, 0, epochs=1, batch_size=BATCH)
        made.sgd |= here.sgd_form
        return made

    def raw(_folder: Path) -> None:
        made = task()
        optimizer = torch.optim.SGD(made.network.parameters(), **made.sgd)
        for index, (pixels, target) in enumerate(loader):
            clock.on_train_batch_start(None, None, None, index)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(made.network(pixels), target))
            optimizer.step()

    def theirs(kind: type[_Plain], folder: Path) -> None:
        trainer = pl.Trainer(
            accelerator="gpu" if bench.cuda else "cpu",
            devices=1,
            max_epochs=1,
            callbacks=[clock],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(kind(task()), loader)

    def ours(folder: Path) -> None:
        callbacks = [clock, Progress("bench"), CheckpointSaver(here, _Deaf())]
        make_trainer(here, folder, logger=Curves(folder), callbacks=callbacks, max_epochs=1).fit(
            task().learner(), loader
        )

    loops: dict[str, Callable[[Path], None]] = {
        "raw loop": raw,
        "Lightning, nothing logged": partial(theirs, _Plain),
        "Lightning, 2 torchmetrics and 2 self.log": partial(theirs, _Logging),
        "ours": ours,
    }
    say("loops around a step")
    found: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(1 + bench.rounds):
        for name in list(loops)[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                loops[name](Path(folder))
            if number:  # the first round warms up
                found[name].append(1e6 * clock.seconds / (STEPS - 1 - SKIPPED))
    rounds = list(zip(*found.values(), strict=True))
    rows: list[Row] = [
        {
            "of": "a step's host time around a network of one linear layer",
            "variant": name,
            **spread("us a step", times),
            "added us": median(times) - median(found["raw loop"]),
        }
        for name, times in found.items()
    ]
    rows[-1] |= spread("of what 2 and 2 add", [(mine - raw) / (log - raw) for raw, _, log, mine in rounds])
    rows[-1] |= spread(
        "of what they add to Lightning", [(mine - raw) / (log - bare) for raw, bare, log, mine in rounds]
    )
    return rows


# Epochs


def _epochs(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Epochs of the built-in data through `bam-train`: evaluation, checkpoint, curves and all; and the typical peer's."""
    sizes = (50_000, 10_000) if bench.cuda else (1_280, 320)
    backbone = options.backbone or ("resnet50" if bench.cuda else "resnet20")
    batch, epochs = options.batch or 128, 6 if bench.cuda else 3
    words = words_of(bench, sizes, backbone, batch=batch, epochs=epochs, threads=bench.threads)
    levers = {"bam-train": "", "bam-train attention=none": "attention=none"}
    if bench.cuda:
        modes = ("off", "reduce-overhead")
        levers |= {f"bam-train trainer.compile={mode}": f"trainer.compile={mode}" for mode in modes}
    rows: list[Row] = []
    for name, lever in levers.items():
        say(name)
        with tempfile.TemporaryDirectory() as folder:
            result = bam_train([*words, *lever.split(), f"output_dir={folder}"])
        row: Row = {"variant": name, "s/epoch": result["seconds_per_epoch"], "data wait %": result["data_wait_percent"]}
        rows.append({**row, "peak MB": result["peak_memory_mib"] * 2**20 / 1e6})
    say("the typical peer's epochs")
    seconds, waited = _peer_epochs(bench, sizes, backbone, batch, epochs)
    rows.append({"variant": "typical peer loop", "s/epoch": seconds, "data wait %": 100 * waited})
    of = f"epochs of {sizes[0]} + {sizes[1]} images, {backbone}, batch {batch}, wall"
    for row in rows:
        row |= {"of": of, "images/s": sizes[0] / row["s/epoch"], "x ours": row["s/epoch"] / rows[0]["s/epoch"]}
        row["runs of 300 epochs an hour"] = 12 / row["s/epoch"]
    return rows


def words_of(
    bench: Bench, sizes: tuple[int, int], backbone: str, *, batch: int, epochs: int, threads: int
) -> list[str]:
    """What one would type after bam-train."""
    return (
        f"data=shapes data.train_size={sizes[0]} data.test_size={sizes[1]} backbone={backbone} recipe=demo "
        f"recipe.batch_size={batch} recipe.epochs={epochs} trainer.device={bench.device.type} trainer.threads={threads}"
    ).split()


def bam_train(words: Sequence[str]) -> Row:
    """The result of one run of the real command, in a process of its own; the last word is its `output_dir`.

    Raises:
        ValueError: if it failed, with its last line.
    """
    done = subprocess.run([sys.executable, "-m", "bam_exp", *words], capture_output=True, text=True, check=False)
    results = list(Path(words[-1].removeprefix("output_dir=")).glob("runs/**/result.json"))
    if done.returncode or not results:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ValueError(f"bam-train {' '.join(words)}: {last}")
    result: Row = json.loads(results[0].read_text())
    return result


def _peer_epochs(bench: Bench, sizes: tuple[int, int], backbone: str, batch: int, epochs: int) -> tuple[float, float]:
    """Median seconds of the typical peer's epoch, evaluation included, and the share of them that waits for batches.

    Our own re-implementation: PIL and worker processes, float32 N x C x H x W, the released BAM, two syncs a step.
    """
    generator = torch.Generator().manual_seed(0)
    train, test = (
        peer_loader(
            torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.randint(20, (size,), generator=generator),
            batch=batch,
            workers=bench.cores,
            train=training,
        )
        for size, training in zip(sizes, (True, False), strict=True)
    )
    network = network_of(backbone, "released").to(bench.device)
    step = Step(ladder(False, compiled=False)[0], network, *next(iter(test)))
    found, shares = [], []
    for _ in range(epochs):
        started, waited = time.perf_counter(), 0.0
        for loader in (train, test):
            network.train(loader is train)
            batches = iter(loader)
            for _ in range(len(loader)):
                before = time.perf_counter()
                given = next(batches)
                waited += time.perf_counter() - before
                step.images, step.labels = (tensor.to(bench.device) for tensor in given)
                if loader is train:
                    step()
                else:
                    with torch.no_grad():
                        (network(step.images).argmax(1) == step.labels).sum().item()
        found.append(time.perf_counter() - started)
        shares.append(waited / found[-1])
    return median(found), median(shares)
