"""The processes that compute one run together: found in the environment (torchrun, srun) or started here, and what they agree on.

Each is a rank and has one device. Rank 0 alone has the run's lock and writes its folder. A run of one process is rank 0 of 1,
and everything here then does nothing.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

import torch
from torch import Tensor, distributed
from torch._C._distributed_c10d import PrefixStore, TCPStore

from bam_exp.errors import RankFailed
from bam_exp.machine.interruption import PARENT

GRACE = 5.0
"""Seconds that a rank has to end by itself once another has failed, before it is ended."""


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """On this machine."""
    starter: str = "bam-train"
    """`torchrun`, `srun`, or bam-train itself."""

    @classmethod
    def outside(cls) -> Self:
        """What the environment says: torchrun's variables, or those of a step of srun with several tasks."""
        variables = os.environ
        if int(variables.get("WORLD_SIZE", 1)) > 1 and "RANK" in variables:
            ours, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
            local, local_size = int(variables.get("LOCAL_RANK", ours)), int(variables.get("LOCAL_WORLD_SIZE", size))
            return cls(ours, size, local, local_size, "torchrun")
        if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            here = re.match(r"\d+", variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
            local_size = int(here.group()) if here else 1
            ours, size = int(variables["SLURM_PROCID"]), int(variables["SLURM_STEP_NUM_TASKS"])
            return cls(ours, size, int(variables["SLURM_LOCALID"]), local_size, "srun")
        return cls()

    def address(self) -> tuple[str, int]:
        """Where rank 0 is to be reached: MASTER_ADDR and MASTER_PORT, else the first machine of the step and a port of its own."""
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment  # takes four seconds

        variables = os.environ
        first = SLURMEnvironment.resolve_root_node_address(variables.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        step = 16 * int(variables.get("SLURM_JOB_ID", 0)) + int(variables.get("SLURM_STEP_ID", 0))
        return variables.get("MASTER_ADDR", first), int(variables.get("MASTER_PORT", 16_000 + step % 16_000))

    def gpu(self) -> str:
        """The GPU of this process, as CUDA_VISIBLE_DEVICES names it, where torchrun or srun has started it."""
        visible = visible_gpus()
        return visible[0 if len(visible) == 1 else self.local_rank]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return chosen or [str(index) for index in range(torch.cuda.device_count())]


def cores() -> int:
    """The CPU cores for this process; of those that it may use, its share."""
    found, world = len(os.sched_getaffinity(0)), World.outside()
    if "SLURM_CPUS_PER_TASK" not in os.environ:  # else they are this task's own
        found //= max(world.local_size, _group.world.local_size)
    return max(1, found)


@dataclass
class Group:
    """This process among those of its run, as long as the run lasts."""

    world: World = field(default_factory=World)
    store: Any = None
    """What the ranks share before they can compute together: torch.distributed's key-value store."""
    children: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    """Rank 1 and on, where rank 0 started them."""

    said: int = 0

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives here, on every rank, however long it takes (rank 0 may wait for a GPU); plain values only.

        Raises:
            RankFailed: if rank 0 fails in place of it.
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

    def form(self, *, gpu: str | None) -> None:
        """From here on the ranks compute together; `gpu` is this one's, as CUDA_VISIBLE_DEVICES names it."""
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
        """Tell the others that this rank has failed; the reason of the one that failed first."""
        reason = line(error)
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
        """Why another rank has failed, if one has."""
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


def rank() -> int:
    """Of this process in its run."""
    return _group.world.rank


def size() -> int:
    """Processes of this run."""
    return _group.world.size


def sum_over(values: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if size() > 1:
        distributed.all_reduce(values)
    return values


def largest(*values: int) -> list[int]:
    """The largest that any rank gives, of each value: what all of them act upon."""
    if size() == 1:
        return list(values)
    found = torch.tensor(values)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return [int(value) for value in found]


def from_first(value: Any) -> Any:
    """What rank 0 gives, on every rank."""
    return _group.from_first(value)


@contextmanager
def joined(count: int, words: Sequence[str], lost: Callable[[str], None]) -> Iterator[Group]:
    """Be one of the `count` ranks of a run: of those that torchrun or srun started, else the first, which starts the others.

    words: of the command line, for the ranks started here. `lost` is told why, before this process is ended because
    another rank failed while it waits for it.

    Raises:
        RankFailed: in place of an error that is only the consequence of another rank's.
    """
    global _group  # noqa: PLW0603
    if count == 1:
        yield _group
        return
    world = World.outside()
    if world.size > 1:
        address, port = world.address()
        # torchrun's agent may have a store already.
        master = world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _store(address, port, master=master)
        children = []
    else:
        world = World(size=count, local_size=count)
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        store, address, port = _prefixed(server), "127.0.0.1", server.port
        children = [_started(rank, world, port, words) for rank in range(1, count)]
    group = _group = Group(world, store, children)
    # The watch has a connection of its own: on the run's, something may be waiting.
    over, seen = threading.Event(), Group(world, _store(address, port), children)
    threading.Thread(target=_watch, args=(seen, over, lost), daemon=True).start()
    try:
        yield group
        over.set()
        if distributed.is_initialized():
            distributed.barrier()
    except Exception as error:
        reason = group.fail(error)
        over.set()
        for child in children:
            child.kill()
        if reason != line(error):
            raise RankFailed(reason) from error
        raise
    finally:
        over.set()
        _end(children)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        _group = Group()


def line(error: BaseException) -> str:
    """An error in a line; of `RankFailed`, the other rank's."""
    return str(error) if isinstance(error, RankFailed) else f"{type(error).__name__}: {' '.join(str(error).split())}"


def _prefixed(store: Any) -> Any:
    return PrefixStore(f"bam_exp {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _store(address: str, port: int, *, master: bool = False) -> Any:
    long = timedelta(minutes=30)  # until the other machines of a cluster are there
    return _prefixed(TCPStore(address, port, is_master=master, wait_for_workers=False, timeout=long))


def _started(rank: int, world: World, port: int, words: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Rank `rank`, started as torchrun would."""
    variables = {
        "RANK": rank, "WORLD_SIZE": world.size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world.size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True, PARENT: os.getpid(),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # no stack traces where rank 0 is killed
    }  # fmt: skip
    command = [sys.executable, "-m", "bam_exp", *words, "hydra.mode=RUN"]
    return subprocess.Popen(command, env={**os.environ, **{key: str(value) for key, value in variables.items()}})


def _watch(group: Group, over: threading.Event, lost: Callable[[str], None]) -> None:
    """End this process if another rank has failed and this one, which may wait for it for ever, does not end by itself."""
    while not over.wait(0.5):
        if (reason := group.failure()) is not None and not over.wait(GRACE):
            if group.world.rank == 0:
                lost(reason)
            for child in group.children:
                child.kill()
            os._exit(1)


def _end(children: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Wait for the ranks that were started here, and no longer than GRACE."""
    end = time.monotonic() + GRACE
    for child in children:
        try:
            child.wait(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
