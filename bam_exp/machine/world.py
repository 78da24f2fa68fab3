"""Which process of a run this is, as torchrun or srun says."""

import os
import re
from dataclasses import dataclass
from typing import Literal, Self

from bam_exp.errors import ConfigError
from bam_exp.processes import LAUNCHED


def _number(variable: str, otherwise: int | None = None) -> int:
    value = os.environ.get(variable, otherwise)
    try:
        return int(str(value))
    except ValueError as error:
        said = " is not set" if value is None else f"={value}: should be a whole number"
        raise ConfigError(f"{variable}{said}, as torchrun and srun set it") from error


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
        """The world that the environment describes: by torchrun's variables, or by those of an srun step with several tasks.

        Raises:
            ConfigError: naming a variable that is no whole number.
        """
        variables = os.environ
        if (size := _number("WORLD_SIZE", 1)) > 1 and "RANK" in variables:
            rank = _number("RANK")
            local, local_size = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size)
            return cls(rank, size, local, local_size, "bam-train" if LAUNCHED in variables else "torchrun")
        if (size := _number("SLURM_STEP_NUM_TASKS", 1)) > 1:
            here = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
            return cls(
                _number("SLURM_PROCID"), size, _number("SLURM_LOCALID"), int(here.group()) if here else 1, "srun"
            )
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
