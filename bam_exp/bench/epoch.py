"""`bam-bench epoch`: the cost that a loop adds to a step, and whole epochs through `bam-train`."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from bam_exp.bench.forms import network_of
from bam_exp.bench.input import peer_loader
from bam_exp.bench.loop import loop_rows
from bam_exp.bench.measure import Bench, Row, say
from bam_exp.bench.step import Step, ladder


def rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """The cost that a loop adds to a step, and whole epochs through bam-train."""
    return [*loop_rows(bench), *_epochs(bench, options)]


def _epochs(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Epochs of the built-in data through `bam-train`, with evaluation, checkpoints and curves, and the typical peer's."""
    sizes = (50_000, 10_000) if bench.cuda else (1_280, 320)
    backbone = options.backbone or ("resnet50" if bench.cuda else "resnet20")
    batch, epochs = options.batch or 128, 6 if bench.cuda else 3
    words = words_of(bench, sizes, backbone, batch=batch, epochs=epochs, threads=bench.threads)
    levers = {"bam-train": "", "bam-train attention=none": "attention=none"}
    levers["bam-train, a checkpoint at every epoch"] = "trainer.checkpoint_minutes=0.001"
    if bench.cuda:
        modes = ("off", "reduce-overhead")
        levers |= {f"bam-train trainer.compile={mode}": f"trainer.compile={mode}" for mode in modes}
    rows: list[Row] = []
    for name, lever in levers.items():
        say(name)
        with tempfile.TemporaryDirectory() as folder:
            result = bam_train([*words, *lever.split(), f"output_dir={folder}"])
        seconds = result["seconds_per_epoch"]
        trained, tested = (
            median(epoch[part] for epoch in result["times"]) for part in ("train_seconds", "test_seconds")
        )
        row: Row = {"variant": name, "s/epoch": seconds, "data wait %": result["data_wait_percent"]}
        row |= {"evaluation %": 100 * tested / seconds, "curves, saving %": 100 * (1 - (trained + tested) / seconds)}
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
    """The words of the bam-train command."""
    return (
        f"data=shapes data.train_size={sizes[0]} data.test_size={sizes[1]} backbone={backbone} recipe=demo "
        f"recipe.batch_size={batch} recipe.epochs={epochs} trainer.device={bench.device.type} trainer.threads={threads}"
    ).split()


def bam_train(words: Sequence[str]) -> Row:
    """The result of one run of the real command, in a process of its own; the last word is its `output_dir`.

    Raises:
        ValueError: if it failed, with its last line.
    """
    done = subprocess.run([sys.executable, "-P", "-m", "bam_exp", *words], capture_output=True, text=True, check=False)
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
