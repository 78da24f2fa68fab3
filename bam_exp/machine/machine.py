"""The config group `trainer`: device, threads, precision and kernels of a run, and how often it saves."""

import logging
import os
import platform
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from bam_exp.machine import ranks
from bam_exp.machine.compiling import Mode
from bam_exp.machine.memory import keep_memory
from bam_exp.machine.world import World, available_cores, visible_gpus


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Machine:
    """Where and how a run computes. Nothing here changes a number beyond rounding, and none of it is in a run's name."""

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
        """Check that the devices exist.

        Raises:
            ValueError: naming the setting.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "trainer.device=cuda: this machine has no GPU that PyTorch can use; trainer.device=cpu or auto"
            )
        there = len(self.gpus or visible_gpus()) if self.uses_gpu else None
        world = World.from_environment()
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
        """The number of processes that compute a run, one for each device."""
        world = World.from_environment()
        if ranks.size() > 1 or world.size > 1:
            return max(ranks.size(), world.size)
        if self.devices != "auto":
            return self.devices
        return len(self.gpus or visible_gpus()) if self.uses_gpu else 1

    @property
    def uses_gpu(self) -> bool:
        """Whether runs use a GPU."""
        return self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())

    @property
    def precision_used(self) -> str:
        """ "bfloat16" (autocast) or "float32"."""
        if self.precision != "auto":
            return self.precision
        return "bfloat16" if self.uses_gpu else "float32"

    @property
    def compile_used(self) -> Mode:
        """ "on", "reduce-overhead" (with CUDA graphs) or "off"."""
        if self.compile == "auto":
            return "on" if self.uses_gpu else "off"
        return self.compile

    @property
    def sgd_form(self) -> dict[str, bool]:
        """The keyword of torch.optim.SGD that selects its implementation."""
        return {"foreach": self.sgd == "foreach"} if self.sgd != "fused" else {"fused": True}

    def prepare(self) -> None:
        """Set threads and kernels of this process, and silence Lightning's logging."""
        for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
        torch.set_num_threads(self.threads or available_cores(ranks.current().world.local_size))
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
        """Device, processor, threads and precision, for `result.json`."""
        device = torch.cuda.get_device_name() if self.uses_gpu else "CPU"
        return {
            "device": device if ranks.size() == 1 else f"{ranks.size()} x {device}",
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "precision": self.precision_used,
        }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
