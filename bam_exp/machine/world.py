"""Which process of a run this is, as torchrun or srun says, and the cores and GPUs that it may use."""

import os
import re
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """The number of ranks on this machine."""
    starter: str = "bam-train"
    """`torchrun`, `srun`, or bam-train itself."""

    @classmethod
    def from_environment(cls) -> Self:
        """The world that the environment describes: by torchrun's variables, or those of an srun step with several tasks."""
        variables = os.environ
        if int(variables.get("WORLD_SIZE", 1)) > 1 and "RANK" in variables:
            rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
            local, local_size = int(variables.get("LOCAL_RANK", rank)), int(variables.get("LOCAL_WORLD_SIZE", size))
            return cls(rank, size, local, local_size, "torchrun")
        if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            here = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
            local_size = int(here.group()) if here else 1
            rank, size = int(variables["SLURM_PROCID"]), int(variables["SLURM_STEP_NUM_TASKS"])
            return cls(rank, size, int(variables["SLURM_LOCALID"]), local_size, "srun")
        return cls()

    def address(self) -> tuple[str, int]:
        """Host and port of rank 0: MASTER_ADDR and MASTER_PORT if set, else the first node of the SLURM step and a port derived
        from the job id.
        """
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # takes four seconds

        variables = os.environ
        first = SLURMEnvironment.resolve_root_node_address(variables.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        step = 16 * int(variables.get("SLURM_JOB_ID", 0)) + int(variables.get("SLURM_STEP_ID", 0))
        return variables.get("MASTER_ADDR", first), int(variables.get("MASTER_PORT", 16_000 + step % 16_000))

    def gpu(self) -> str:
        """The GPU of this process as CUDA_VISIBLE_DEVICES names it, if torchrun or srun has started it."""
        visible = visible_gpus()
        return visible[0 if len(visible) == 1 else self.local_rank]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return chosen or [str(index) for index in range(torch.cuda.device_count())]


def available_cores(local_size: int | None = None) -> int:
    """The CPU cores for this process: its share of those that the processes of a run may use on this machine.

    Args:
        local_size: processes of the run on this machine; by default as the environment says.
    """
    # macOS has no sched_getaffinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "SLURM_CPUS_PER_TASK" not in os.environ:  # else they belong to this task alone
        cores //= local_size or World.from_environment().local_size
    return max(1, cores)
