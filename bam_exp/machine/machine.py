"""The machine a run computes on: device, threads, precision, kernels, and how often it saves (the config group `trainer`)."""

import ctypes
import logging
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from bam_exp.machine import ranks


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
