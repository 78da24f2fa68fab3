"""Examinations of training on a GPU: through Lightning's trainer as a run has it, and through the command `bam-train` itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from bam_exp.attention import BAM, attach
from bam_exp.backbones import ResNet
from bam_exp.data import Shapes
from bam_exp.doctor.finding import Finding
from bam_exp.machine import Machine
from bam_exp.machine.compiling import Mode, compile_network, graphs_skipped
from bam_exp.tasks import Classification
from bam_exp.training.lightning import make_trainer

CLOSE = 0.02
"""How far two ways of computing the same few steps may be apart by rounding, relative to the norm of what changed.

Ten small steps (rate 1e-4) are compared: if the initial weights differ by 1e-7 of their size, what changes differs by 0.006, and by
0.3 at a rate of 0.01, where rounding grows from step to step.
"""


def compiled(folder: Path, device: Any = "cuda") -> Finding:
    """Compiled steps are those of eager mode, to rounding."""
    return _agree(folder, device, "on")


def graphs(folder: Path, device: Any = "cuda") -> Finding:
    """trainer.compile=reduce-overhead: CUDA graphs take the steps of eager mode, in Lightning's order of gradients and SGD."""
    found = _agree(folder, device, "reduce-overhead")
    if skipped := graphs_skipped("reduce-overhead"):
        return Finding("wrong", f"{found.text}; {skipped} graphs skipped", "trainer.compile=on does without graphs")
    return found


def _agree(folder: Path, device: Any, mode: Mode) -> Finding:
    start = _trained(folder, device, "off", steps=0)
    eager, other = (_trained(folder, device, one) for one in ("off", mode))
    error = float((other - eager).norm() / (eager - start).norm())
    text = f"weights after 10 steps of ResNet-20 + BAM differ from eager ones by {error:.1e} of their change"
    return Finding("ok" if error < CLOSE else "wrong", text)


def no_waiting(folder: Path, device: Any = "cuda") -> Finding:
    """No training step waits for the GPU."""
    watch = _NoWaiting(device)
    try:
        _trained(folder, device, "off", watch=watch)
    except RuntimeError as error:
        return Finding("wrong", f"a step waits: {' '.join(str(error).split())[:200]}")
    return Finding("ok", f"{watch.steps} steps, none of which waits for the device")


class _NoWaiting(pl.Callback):
    """Makes waiting for the GPU an error from the second step on, while a step lasts."""

    def __init__(self, device: str) -> None:
        self.cuda, self.steps = device == "cuda", 0

    def on_train_batch_start(self, *_: Any) -> None:
        if self.cuda and self.steps:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any) -> None:
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")
        self.steps += 1


def _trained(folder: Path, device: Any, mode: Mode, *, steps: int = 10, watch: pl.Callback | None = None) -> Tensor:
    """All weights after some steps of ResNet-20 with BAM in float32, by the trainer that a run has."""
    machine = Machine(device=device, compile=mode, precision="float32")
    machine.prepare()
    torch.manual_seed(0)
    network = attach(ResNet(20, depth=20, stem="cifar"), BAM, reduction=8).to(memory_format=torch.channels_last)
    data = Shapes(folder, train_size=320, test_size=40)
    task = Classification(network, data, 0, epochs=1, batch_size=32, lr=1e-4, max_steps=steps or None)
    if steps:
        compile_network(network, mode, train_sizes={32}, test_sizes={32, 8})
        task.sgd |= machine.sgd_form
        callbacks = [watch] if watch else []
        make_trainer(machine, folder, logger=False, callbacks=callbacks, **task.limits).fit(task.learner())
    return torch.cat([parameter.detach().cpu().flatten() for parameter in network.parameters()])


def resume(folder: Path, device: str = "cuda") -> Finding:
    """A run in deterministic mode that is stopped and continued ends bitwise as one that was not."""
    return _resumed(folder, device, "off")


def resume_compiled(folder: Path, device: str = "cuda") -> Finding:
    """The same, compiled."""
    return _resumed(folder, device, "on")


def _resumed(folder: Path, device: str, mode: str) -> Finding:
    words = [
        "data=shapes", "data.train_size=2000", "data.test_size=200", "recipe.epochs=8", "attention.reduction=8",
        f"trainer.device={device}", "trainer.deterministic=true", f"trainer.compile={mode}", "trainer.checkpoint_minutes=0.01",
    ]  # fmt: skip
    whole, cut = folder / "whole", folder / "cut"
    _bam_train([*words, f"output_dir={whole}"])
    with _started([*words, f"output_dir={cut}"]) as process:
        while process.poll() is None and not list(cut.glob("runs/*/*/*/*/*/checkpoint-*.pt")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stopped = process.wait()
    if stopped == 0:
        return Finding("not run", "the run was done before it could be stopped")
    _bam_train([*words, f"output_dir={cut}"])
    ends = [_weights(one) for one in (whole, cut)]
    different = [name for name, tensor in ends[0].items() if not torch.equal(tensor, ends[1][name])]
    equal = len(ends[0]) - len(different)
    text = f"stopped with exit code {stopped} and continued: {equal} of {len(ends[0])} tensors equal to the bit"
    return Finding("wrong" if different else "ok", text)


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    [file] = folder.glob("runs/*/*/*/*/*/weights.safetensors")
    return load_file(file)


def _bam_train(words: list[str]) -> None:
    with _started(words) as process:
        if process.wait() != 0:
            assert process.stderr is not None
            said = process.stderr.read().strip().splitlines()
            raise RuntimeError(f"bam-train ended with exit code {process.returncode}: {said[-1] if said else ''}")


@contextmanager
def _started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """`bam-train` with these words; it is ended with the block."""
    command = [sys.executable, "-P", "-m", "bam_exp", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
