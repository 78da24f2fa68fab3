"""The cost that a training loop adds to a step: a raw loop, Lightning, the typical use of Lightning, and ours."""

import contextlib
import io
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

from bam_exp.bench.measure import Bench, Row, say, spread
from bam_exp.data import DeviceLoader, Shapes
from bam_exp.machine import Machine
from bam_exp.machine.interruption import Interruption
from bam_exp.tasks import Classification
from bam_exp.training.curves import Curves
from bam_exp.training.lightning import make_trainer
from bam_exp.training.progress import Progress
from bam_exp.training.saving import CheckpointSaver

STEPS, SKIPPED, BATCH = 300, 40, 20


class _Clock(pl.Callback):
    """Measures the time from the first step that counts to the start of the last one."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.seconds = now, 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == SKIPPED:
            self.seconds = -self.now()
        if batch_idx == STEPS - 1:
            self.seconds += self.now()


class _Plain(pl.LightningModule):
    """Lightning without any logging."""

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
    """The typical use of Lightning: two torchmetrics and two `self.log` in every step."""

    def training_step(self, given: tuple[Tensor, Tensor], _index: int) -> Tensor:
        logits = self.network(given[0])
        loss = F.cross_entropy(logits, given[1])
        self.mean(loss)
        self.accuracy(logits, given[1])
        self.log("train/loss", self.mean, on_step=False, on_epoch=True)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss


class _Deaf(Interruption):
    """An interruption that leaves the signals to the benchmark."""

    def listen(self) -> None:
        pass


class _Loops:
    """Four loops around a network that costs next to nothing."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.data = Shapes(Path(), train_size=BATCH * STEPS, test_size=20)
        device = cast(Any, bench.device.type)
        self.machine = Machine(device=device, threads=bench.threads, compile="off", precision="float32")
        self.machine.prepare()
        images, labels = self.data.load("train")
        mean, std = self.data.mean, self.data.std
        self.loader = DeviceLoader(
            images, labels, batch_size=BATCH, mean=mean, std=std, seed=0, device=bench.device, pad=2, flip=True
        )
        self.clock = _Clock(time.process_time if bench.threads == 1 and not bench.cuda else time.perf_counter)

    def _task(self) -> Classification:
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, self.data.num_classes))
        task = Classification(network.to(self.bench.device), self.data, 0, epochs=1, batch_size=BATCH)
        task.sgd |= self.machine.sgd_form
        return task

    def raw(self, _folder: Path) -> None:
        """A plain PyTorch loop."""
        task = self._task()
        optimizer = torch.optim.SGD(task.network.parameters(), **task.sgd)
        for index, (pixels, target) in enumerate(self.loader):
            self.clock.on_train_batch_start(None, None, None, index)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(task.network(pixels), target))
            optimizer.step()

    def lightning(self, module: type[_Plain], folder: Path) -> None:
        """Lightning with its defaults."""
        trainer = pl.Trainer(
            accelerator="gpu" if self.bench.cuda else "cpu",
            devices=1,
            max_epochs=1,
            callbacks=[self.clock],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module(self._task()), self.loader)

    def ours(self, folder: Path) -> None:
        """The loop of bam-train, with its curves, progress and checkpoints."""
        callbacks = [self.clock, Progress("bench", self.machine.precision_used), CheckpointSaver(self.machine, _Deaf())]
        trainer = make_trainer(self.machine, folder, logger=Curves(folder), callbacks=callbacks, max_epochs=1)
        trainer.fit(self._task().learner(), self.loader)


def loop_rows(bench: Bench) -> list[Row]:
    """The host time of a step in each loop."""
    loops = _Loops(bench)
    variants: dict[str, Callable[[Path], None]] = {
        "raw loop": loops.raw,
        "Lightning, nothing logged": partial(loops.lightning, _Plain),
        "Lightning, 2 torchmetrics and 2 self.log": partial(loops.lightning, _Logging),
        "ours": loops.ours,
    }
    say("loops around a step")
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1 + bench.rounds):
        for name in list(variants)[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                variants[name](Path(folder))
            if number:  # the first round warms up
                measured[name].append(1e6 * loops.clock.seconds / (STEPS - 1 - SKIPPED))
    return _compared(measured)


def _compared(measured: dict[str, list[float]]) -> list[Row]:
    rounds: Sequence[tuple[float, ...]] = list(zip(*measured.values(), strict=True))
    rows: list[Row] = [
        {
            "of": "a step's host time around a network of one linear layer",
            "variant": name,
            **spread("us a step", times),
            "added us": median(times) - median(measured["raw loop"]),
        }
        for name, times in measured.items()
    ]
    rows[-1] |= spread("of what 2 and 2 add", [(mine - raw) / (log - raw) for raw, _, log, mine in rounds])
    rows[-1] |= spread(
        "of what they add to Lightning", [(mine - raw) / (log - bare) for raw, bare, log, mine in rounds]
    )
    return rows
