"""Which process of a run this is, as torchrun or srun says."""

import os
import re
from dataclasses import dataclass
from typing import Literal, Self

from bam_exp.processes import LAUNCHED


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of ranks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """The number of ranks on this machine."""
    starter: Literal["torchrun", "srun", "bam-train"] = "bam-train"
    """The program that started the ranks."""

    @classmethod
    def from_environment(cls) -> Self:
        """The world that the environment describes: by torchrun's variables, or by those of an srun step with several tasks."""
        variables = os.environ
        if int(variables.get("WORLD_SIZE", 1)) > 1 and "RANK" in variables:
            rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
            local, local_size = int(variables.get("LOCAL_RANK", rank)), int(variables.get("LOCAL_WORLD_SIZE", size))
            return cls(rank, size, local, local_size, "bam-train" if LAUNCHED in variables else "torchrun")
        if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            here = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
            local_size = int(here.group()) if here else 1
            rank, size = int(variables["SLURM_PROCID"]), int(variables["SLURM_STEP_NUM_TASKS"])
            return cls(rank, size, int(variables["SLURM_LOCALID"]), local_size, "srun")
        return cls()

    @property
    def launched(self) -> bool:
        """Whether bam-train has started this process as a rank; the process that did so reports how the run ends."""
        return self.size > 1 and self.starter == "bam-train"

    def export(self) -> None:
        """Set torchrun's variables in an srun step, where PyTorch and Lightning look for them.

        MASTER_ADDR and MASTER_PORT stay if they are set. The defaults are the first node of the step, and a port derived from
        the job and the step, so that two steps of a job do not meet.
        """
        if self.starter != "srun":
            return
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # takes four seconds

        step = 16 * int(os.environ.get("SLURM_JOB_ID", "0")) + int(os.environ.get("SLURM_STEP_ID", "0"))
        node = SLURMEnvironment.resolve_root_node_address(os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        os.environ.setdefault("MASTER_ADDR", node)
        os.environ.setdefault("MASTER_PORT", str(16_000 + step % 16_000))
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.size),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_WORLD_SIZE=str(self.local_size),
        )
