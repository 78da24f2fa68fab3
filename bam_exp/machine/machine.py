"""The config group `trainer`: device, threads, precision and kernels of a run, and how often it saves."""

import logging
import os
import sys
import warnings
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from bam_exp.cpu import cores_per_process, cpu_name
from bam_exp.errors import ConfigError
from bam_exp.machine import ranks
from bam_exp.machine.compiling import Mode
from bam_exp.machine.gpus import gpu_problem, visible_gpus
from bam_exp.machine.memory import keep_memory
from bam_exp.machine.precision import Precision
from bam_exp.machine.world import World


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Machine:
    """Device, processes, precision and threads of a run.

    Nothing here changes a number beyond rounding, and none of it is in a run's name.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", Precision] = "auto"
    compile: Literal["auto", "on", "reduce-overhead", "off"] = "auto"
    sgd: Literal["fused", "foreach", "loop"] = "fused"
    threads: Annotated[PositiveInt, Field(le=1024)] | None = None
    deterministic: bool = False
    checkpoint_minutes: PositiveFloat = 1.0
    best_weights: bool = False
    devices: PositiveInt | Literal["auto"] = 1
    gpus: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    runs_per_gpu: PositiveInt = 1
    time_limit_minutes: PositiveFloat | None = None

    @cached_property
    def world(self) -> World:
        """The rank of this process, as its environment says."""
        return World.from_environment()

    def check_device(self) -> None:
        """Check that the devices exist, without asking the driver, so that a GPU can still be leased.

        Raises:
            ConfigError: naming the setting.
        """
        visible, world = visible_gpus() if self.device != "cpu" else [], self.world
        if self.device == "cuda" and not visible:
            raise ConfigError(
                "trainer.device=cuda: this machine has no GPU that PyTorch can use; trainer.device=cpu or auto"
            )
        if self.precision == "tf32" and not visible:
            raise ConfigError("trainer.precision=tf32: only GPUs have it; trainer.precision=float32, bfloat16 or auto")
        if self.gpus and visible and max(self.gpus) >= len(visible):
            raise ConfigError(f"trainer.gpus={self.gpus}: the GPUs here are 0 to {len(visible) - 1}")
        there = len(self.gpus or visible) if visible else None
        if world.size > 1:
            if self.devices not in ("auto", world.size):
                raise ConfigError(
                    f"trainer.devices={self.devices}: {world.starter} started {world.size} processes; trainer=ddp takes them"
                )
            one_each = there == 1 and world.starter == "srun"
            if there is not None and there < world.local_size and not one_each:
                raise ConfigError(
                    f"trainer.devices: {world.starter} started {world.local_size} processes here for {there} GPUs"
                )
        elif there is not None and self.devices != "auto" and self.devices > there:
            raise ConfigError(
                f"trainer.devices={self.devices}: there are only {there} GPUs{' in trainer.gpus' if self.gpus else ''}"
            )

    @property
    def processes(self) -> int:
        """The number of processes that compute a run, one for each device."""
        if self.world.size > 1:
            return self.world.size
        if self.devices != "auto":
            return self.devices
        return len(self.gpus or visible_gpus()) if self.uses_gpu else 1

    @property
    def uses_gpu(self) -> bool:
        """Whether runs use a GPU. The driver is not asked: see `opened`."""
        return self.device == "cuda" or (self.device == "auto" and bool(visible_gpus()))

    def opened(self) -> "Machine":
        """This machine with its GPU tried; the same on the CPU, with a line that says why, if `auto` finds it unusable.

        To be called when the run has its GPU, since it asks the driver.

        Raises:
            ConfigError: if the GPU cannot compute, because its driver is too old or PyTorch has no kernels for it, and it was
                asked for or is one of several; or if it does not have the precision.
        """
        if not self.uses_gpu:
            return self
        if (problem := gpu_problem()) is not None:
            if self.device == "cuda" or self.processes > 1 or self.precision == "tf32":
                raise ConfigError(
                    f"trainer.device={self.device}: no GPU that PyTorch can use ({problem}); trainer.device=cpu"
                )
            print(f"no GPU that PyTorch can use ({problem}): computing on the CPU", file=sys.stderr, flush=True)
            return replace(self, device="cpu")
        if self.precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
            name = torch.cuda.get_device_name()
            raise ConfigError(f"trainer.precision=tf32: {name} does not have it; trainer.precision=float32 or auto")
        return self

    @property
    def precision_used(self) -> Precision:
        """ "float32" (IEEE), "tf32" (float32 whose products have a mantissa of 10 bits) or "bfloat16" (autocast).

        "auto" is bfloat16 on GPUs that compute in it. Turing and older only emulate it, more slowly than float32. On a CPU it is
        float32, unless a run has found bfloat16 to be faster: see `training.precision`.
        """
        if self.precision != "auto":
            return self.precision
        native = self.uses_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"

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
        torch.set_num_threads(self.threads or cores_per_process())
        if ranks.size() > 1:
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # or Lightning would choose
        if not self.uses_gpu:
            keep_memory()
        else:
            # PyTorch's default is TF32 in convolutions and not in matrix products. This is the older of its two interfaces:
            # after the newer one, `fp32_precision`, TorchInductor and Dynamo raise where they read the older.
            tf32 = self.precision_used == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def description(self) -> dict[str, Any]:
        """Device, processor, threads and precision, for `result.json`."""
        device = torch.cuda.get_device_name() if self.uses_gpu else "CPU"
        return {
            "device": device if ranks.size() == 1 else f"{ranks.size()} x {device}",
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "precision": self.precision_used,
        }
