"""The process group of one run, and the collectives it uses.

Each rank has one device. Rank 0 alone holds the run's lock and writes its folder. In a run of one process every collective
returns its argument.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from bam_exp.errors import BamError
from bam_exp.machine.world import World

T = TypeVar("T")


@contextmanager
def process_group(world: World, *, gpu: bool) -> Iterator[None]:
    """Join the process group of the ranks that torchrun, srun or bam-train has started.

    If the body raises, the group is left as it is: closing it would wait for ranks that may be waiting for this one. The
    launcher ends the other ranks once this process has exited.
    """
    if world.size == 1:
        yield
        return
    world.export()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack traces when another rank ends
    # Objects and the agreement to stop travel by gloo, so that they never wait for the GPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", rank=world.rank, world_size=world.size)
    yield
    all_reduce_max(0)  # no rank leaves while another one may still need it
    distributed.destroy_process_group()


def rank() -> int:
    """The rank of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """The number of ranks."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all ranks, in place; returns the tensor."""
    if size() > 1:
        distributed.all_reduce(values)
    return values


def all_reduce_max(*values: int) -> list[int]:
    """Element-wise maximum over all ranks."""
    if size() == 1:
        return list(values)
    largest = torch.tensor(values)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return [int(value) for value in largest]


def all_gather(value: T) -> list[T]:
    """The picklable value of every rank, in the order of the ranks."""
    values = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The value that rank 0 gives, on every rank."""
    return from_first(lambda: value)


def from_first(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 only, and return its value on every rank.

    Raises:
        BamError: on every rank, if `make` raises one on rank 0.
    """
    if size() == 1:
        return make()
    shared: list[Any] = [None, None]
    if rank() == 0:
        try:
            shared[0] = make()
        except BamError as error:
            shared[1] = error
    distributed.broadcast_object_list(shared, device=torch.device("cpu"))
    value, failure = shared
    if failure is not None:
        raise failure
    return value  # type: ignore[no-any-return]  # what rank 0 has made
