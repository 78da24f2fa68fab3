"""The process group of one run, and the collectives it uses.

Each rank has one device. Rank 0 alone holds the run's lock and writes its folder. A run of one process is rank 0 of 1, for
which every collective returns its argument.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # public, but not in __all__

from bam_exp.errors import RankFailed
from bam_exp.machine.world import World


@dataclass
class Group:
    """The ranks of a run, as seen from this process."""

    world: World = field(default_factory=World)
    store: Any = None
    """The key-value store of torch.distributed, which the ranks use before the process group exists."""
    children: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    """The other ranks, if rank 0 has started them."""

    said: int = 0

    def broadcast(self, value: Any) -> Any:
        """Broadcast a JSON-serialisable value from rank 0. It waits without a timeout, because rank 0 may be waiting for a GPU.

        Raises:
            RankFailed: if another rank fails in the meantime.
        """
        if self.world.size == 1:
            return value
        self.said += 1
        key = f"said {self.said}"
        if self.world.rank == 0:
            self.store.set(key, json.dumps(value))
        while not self.store.check([key]):
            if self.store.check(["failed"]):
                raise RankFailed(self.store.get("failed").decode())
            time.sleep(0.1)
        return json.loads(self.store.get(key))

    def init_process_group(self, *, gpu: str | None) -> None:
        """Initialise torch.distributed's process group; `gpu` is this rank's, as CUDA_VISIBLE_DEVICES names it."""
        if self.world.size == 1:
            return
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu is not None else "gloo",
            store=PrefixStore("group", self.store),
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def fail(self, error: BaseException) -> str:
        """Tell the other ranks that this one has failed, and return the reason of the rank that failed first."""
        reason = error_line(error)
        if type(error) is RuntimeError or isinstance(error, distributed.DistError):
            # Most likely the others' end of a connection: give whoever broke it the time to say why.
            end = time.monotonic() + 3
            while time.monotonic() < end:
                if (other := self.failure()) is not None:
                    return other
                time.sleep(0.1)
        try:
            return str(self.store.compare_set("failed", "", reason).decode())
        except RuntimeError:
            return reason

    def failure(self) -> str | None:
        """The reason why another rank has failed, or None."""
        for rank, child in enumerate(self.children, start=1):
            if (code := child.poll()) is not None and code < 0:
                return f"rank {rank} of {self.world.size} was killed by {signal.Signals(-code).name}" + (
                    " (out of memory?)" if code == -signal.SIGKILL else ""
                )
        try:
            if self.store.check(["failed"]):
                return str(self.store.get("failed").decode())
        except RuntimeError:
            return "rank 0 is gone"
        for rank, child in enumerate(self.children, start=1):
            if child.poll():
                return f"rank {rank} of {self.world.size} ended with exit code {child.returncode}"
        return None


_group = Group()


def current() -> Group:
    """The process group of the run that this process computes."""
    return _group


def enter(group: Group) -> Group:
    """Make this the process group that the collectives use."""
    global _group  # noqa: PLW0603
    _group = group
    return group


def rank() -> int:
    """The rank of this process."""
    return _group.world.rank


def size() -> int:
    """The number of ranks."""
    return _group.world.size


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all ranks, in place; returns the tensor."""
    if size() > 1:
        distributed.all_reduce(values)
    return values


def all_reduce_max(*values: int) -> list[int]:
    """Element-wise maximum over all ranks."""
    if size() == 1:
        return list(values)
    found = torch.tensor(values)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return [int(value) for value in found]


def all_gather(value: Any) -> list[Any]:
    """The picklable value of every rank, in the order of the ranks."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    distributed.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Broadcast a JSON-serialisable value from rank 0."""
    return _group.broadcast(value)


def error_line(error: BaseException) -> str:
    """An error in one line: its type and message, or the message of `RankFailed` alone."""
    return str(error) if isinstance(error, RankFailed) else f"{type(error).__name__}: {' '.join(str(error).split())}"
