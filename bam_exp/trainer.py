"""The machine a run trains on: device, threads, precision, checkpoints in time, and the Lightning trainer made for it."""

import ctypes
import logging
import os
import platform
import signal
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from bam_exp import ranks
from bam_exp.checkpoint import Checkpoints
from bam_exp.progress import BetweenSteps


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Machine:
    """Where and how a run computes. Nothing here changes what is computed beyond rounding; none of it is in a run's name."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "reduce-overhead", "off"] = "auto"
    sgd: Literal["fused", "foreach", "loop"] = "fused"
    threads: PositiveInt | None = None
    deterministic: bool = False
    checkpoint_epochs: PositiveInt = 1
    checkpoint_minutes: PositiveFloat = 10.0
    devices: PositiveInt | Literal["auto"] = 1
    gpus: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    runs_per_gpu: PositiveInt = 1
    time_limit_minutes: PositiveFloat | None = None

    def check_device(self) -> None:
        """Refuse a GPU where there is none.

        Raises:
            ValueError: naming the setting.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "trainer.device=cuda: this machine has no GPU that PyTorch can use; trainer.device=cpu or auto"
            )
        there = len(self.gpus or ranks.visible_gpus()) if self.uses_gpu else None
        world = ranks.World.outside()
        if world.size > 1:
            if self.devices not in ("auto", world.size):
                raise ValueError(
                    f"trainer.devices={self.devices}: {world.starter} started {world.size} processes; trainer=ddp takes them"
                )
            one_each = there == 1 and world.starter == "srun"
            if there is not None and there < world.local_size and not one_each:
                raise ValueError(
                    f"trainer.devices: {world.starter} started {world.local_size} processes here for {there} GPUs"
                )
        elif there is not None and self.devices != "auto" and self.devices > there:
            raise ValueError(
                f"trainer.devices={self.devices}: there are only {there} GPUs{' in trainer.gpus' if self.gpus else ''}"
            )

    @property
    def processes(self) -> int:
        """How many processes compute a run, each on a device of its own."""
        world = ranks.World.outside()
        if ranks.size() > 1 or world.size > 1:
            return max(ranks.size(), world.size)
        if self.devices != "auto":
            return self.devices
        return len(self.gpus or ranks.visible_gpus()) if self.uses_gpu else 1

    @property
    def uses_gpu(self) -> bool:
        """Whether runs go to a GPU."""
        return self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())

    @property
    def precision_used(self) -> str:
        """ "bfloat16" (autocast) or "float32"."""
        if self.precision != "auto":
            return self.precision
        return "bfloat16" if self.uses_gpu else "float32"

    @property
    def compile_used(self) -> str:
        """ "on", "reduce-overhead" (with CUDA graphs) or "off"."""
        if self.compile == "auto":
            return "on" if self.uses_gpu else "off"
        return self.compile

    def compile_network(self, network: nn.Module) -> None:
        """Compile `network` in place, as `compile` says; where that fails, it says why and goes on in eager mode."""
        if self.compile_used == "off":
            return
        from torch._dynamo.exc import TorchDynamoException  # takes two seconds

        # A batch and an epoch's last, smaller one, in training and in evaluation: four static shapes.
        mode = "reduce-overhead" if self.compile_used == "reduce-overhead" else None
        compiled = torch.compile(network.forward, dynamic=False, mode=mode)

        def forward(*inputs: Tensor) -> Any:
            try:
                return compiled(*inputs)
            except TorchDynamoException as error:
                del network.forward
                inner = getattr(error, "inner_exception", error)
                reason = f"{type(inner).__name__}: {str(inner).strip().partition(chr(10))[0]}"
                print(f"not compiled, going on in eager mode: {reason}", file=sys.stderr)
                return network.forward(*inputs)

        network.forward = forward

    def graphs_skipped(self) -> int:
        """How often `compile=reduce-overhead` had to do without a CUDA graph in this process."""
        if self.compile_used != "reduce-overhead":
            return 0
        from torch._dynamo.utils import counters

        return counters["inductor"]["cudagraph_skips"]

    @property
    def sgd_form(self) -> dict[str, bool]:
        """Keyword of torch.optim.SGD: which of its forms computes a step."""
        return {"foreach": self.sgd == "foreach"} if self.sgd != "fused" else {"fused": True}

    def prepare(self) -> None:
        """Set threads and kernels of this process, and keep Lightning from talking over the run."""
        for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
        torch.set_num_threads(self.threads or ranks.cores())
        if ranks.size() > 1:
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # or Lightning would choose
        if not self.uses_gpu:
            keep_memory()
        else:
            torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def trainer(
        self, folder: Path, *, logger: Logger | Literal[False], callbacks: list[pl.Callback], **limits: Any
    ) -> pl.Trainer:
        """A Lightning trainer for one run on this machine; `limits` are `max_epochs` and `max_steps`."""
        alone = ranks.size() == 1
        return pl.Trainer(
            accelerator="gpu" if self.uses_gpu else "cpu",
            devices=1,
            num_nodes=ranks.size(),
            # The buffers are either the same on all ranks or each rank's own.
            strategy="auto" if alone else DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True),
            precision="bf16-mixed" if self.precision_used == "bfloat16" else "32-true",
            default_root_dir=folder,
            logger=logger,
            callbacks=callbacks,
            # Under SLURM, submitit requeues, not Lightning.
            plugins=[Checkpoints(folder), LightningEnvironment() if alone else ranks.Environment()],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1_000_000,  # nothing is logged in a step: curves are per epoch
            deterministic="warn" if self.deterministic else None,
            **limits,
        )

    def description(self) -> dict[str, Any]:
        """What a result keeps of the hardware: device, processor, threads, precision."""
        device = torch.cuda.get_device_name() if self.uses_gpu else "CPU"
        return {
            "device": device if ranks.size() == 1 else f"{ranks.size()} x {device}",
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "precision": self.precision_used,
        }


def keep_memory() -> None:
    """Have this process keep the memory that it frees, for its next step; nothing where there is no glibc.

    By default glibc hands every large tensor back to the kernel, which clears each page again when the next one is made:
    about a twentieth of a step of ResNet-50 on a CPU. Who has set one of `_MALLOC` decides otherwise.
    """
    if any(name in os.environ for name in _MALLOC):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)


_MALLOC = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


PARENT = "BAM_EXP_PARENT"
"""Environment variable with the process id of the sweep that started a run."""


class Keeper(BetweenSteps):
    """Saves the run at the end of epochs, every so many minutes, and before it goes when it is told to stop.

    It never saves at the last batch of an epoch: resuming from there makes Lightning run extra steps; the epoch's end is a
    moment later.
    """

    def __init__(self, machine: Machine, interruption: "Interruption") -> None:
        super().__init__()
        self.epochs = machine.checkpoint_epochs
        self.interval = timedelta(minutes=machine.checkpoint_minutes).total_seconds()
        self.interruption = interruption
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, whose handlers end a run with exit code 0."""
        self.interruption.listen()
        self.saved = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save inside an epoch when it is time or when told to stop."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        due = time.monotonic() - self.saved > self.interval
        self._save(trainer, due=due)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save every `checkpoint_epochs`, at the end of training and when told to stop."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        self._save(trainer, due=last or (trainer.current_epoch + 1) % self.epochs == 0)

    def _save(self, trainer: pl.Trainer, *, due: bool) -> None:
        """Save and act alike on all ranks, if it is due or one of them was told to stop."""
        number = self.interruption.number if self.interruption.came else None
        stop, save = ranks.largest(number or 0, due)
        if stop or save:
            trainer.save_checkpoint(trainer.default_root_dir)
            self.saved = time.monotonic()
        if stop:
            raise Interrupted(stop)


class Interrupted(BaseException):
    """The run was told to stop and has saved where it stands."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Interruption:
    """SIGTERM, SIGINT, SLURM's USR2, or the death of the sweep that started this run, as a flag looked at between batches."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.parent = os.environ.get(PARENT)

    def listen(self) -> None:
        """Let the signals set the flag; a second Ctrl-C acts at once."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self.number == number == signal.SIGINT:
            raise Interrupted(number)
        self.number = number

    @property
    def came(self) -> bool:
        """Whether the run was told to stop."""
        if self.number is None and self.parent is not None and str(os.getppid()) != self.parent:
            self.number = signal.SIGTERM
        return self.number is not None
