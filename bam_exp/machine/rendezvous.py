"""Forming the process group of a run: attaching to the ranks that torchrun or srun started, or starting them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not in __all__

from bam_exp.errors import RankFailed
from bam_exp.machine import ranks
from bam_exp.machine.interruption import PARENT
from bam_exp.machine.ranks import Group, error_line
from bam_exp.machine.world import World

GRACE = 5.0
"""Seconds that a rank has to end by itself once another has failed, before it is ended."""


@contextmanager
def process_group(count: int, overrides: Sequence[str], on_rank_failure: Callable[[str], None]) -> Iterator[Group]:
    """Join the run's process group: attach to the ranks that torchrun or srun started, or act as rank 0 and start the others.

    Args:
        count: the number of ranks.
        overrides: overrides of the command line, for the ranks that are started here.
        on_rank_failure: called with the reason before this process exits because another rank failed.

    Raises:
        RankFailed: instead of an error that is only the consequence of another rank's failure.
    """
    if count == 1:
        yield ranks.current()
        return
    world = World.from_environment()
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
        children = [_started(rank, world, port, overrides) for rank in range(1, count)]
    group = ranks.enter(Group(world, store, children))
    # The watch has a connection of its own: on the run's, something may be waiting.
    over, seen = threading.Event(), Group(world, _store(address, port), children)
    threading.Thread(target=_watch, args=(seen, over, on_rank_failure), daemon=True).start()
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
        if reason != error_line(error):
            raise RankFailed(reason) from error
        raise
    finally:
        over.set()
        _end(children)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        ranks.enter(Group())


def _prefixed(store: Any) -> Any:
    return PrefixStore(f"bam_exp {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _store(address: str, port: int, *, master: bool = False) -> Any:
    long = timedelta(minutes=30)  # until the other machines of a cluster are there
    return _prefixed(TCPStore(address, port, is_master=master, wait_for_workers=False, timeout=long))


def _started(rank: int, world: World, port: int, overrides: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a rank as torchrun would."""
    variables = {
        "RANK": rank, "WORLD_SIZE": world.size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world.size,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True, PARENT: os.getpid(),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # no stack traces where rank 0 is killed
    }  # fmt: skip
    command = [sys.executable, "-m", "bam_exp", *overrides, "hydra.mode=RUN"]
    return subprocess.Popen(command, env={**os.environ, **{key: str(value) for key, value in variables.items()}})


def _watch(group: Group, over: threading.Event, on_rank_failure: Callable[[str], None]) -> None:
    """End this process if another rank has failed and this one, which may be waiting for it, does not end by itself."""
    while not over.wait(0.5):
        if (reason := group.failure()) is not None and not over.wait(GRACE):
            if group.world.rank == 0:
                on_rank_failure(reason)
            for child in group.children:
                child.kill()
            os._exit(1)


def _end(children: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Wait for the ranks that were started here, at most GRACE seconds."""
    end = time.monotonic() + GRACE
    for child in children:
        try:
            child.wait(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
