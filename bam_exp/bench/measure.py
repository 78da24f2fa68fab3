"""Measuring: a device with its clock and ceilings, counts of operations and bytes, and errors against float64."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bam_exp.cpu import available_cores
from bam_exp.machine import Machine
from bam_exp.machine.memory import keep_memory

Row = dict[str, Any]


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the ATen operations inside it that compute (`kernels`), and the `bytes` that they read and write.

    Views are free, an expanded dimension counts once, and so does a tensor given twice. On a GPU an operation is about
    one launch; a foreach or fused operation counts as one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        outcome = func(*args, **kwargs)
        schema = func._schema
        written = {argument.name for argument in schema.arguments if argument.is_out}
        given = [args, *(value for key, value in kwargs.items() if key not in written)]
        inputs = {id(leaf): leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
        outputs = {id(leaf): leaf for leaf in tree_leaves(outcome) if isinstance(leaf, Tensor)}
        if schema.is_mutable and not outputs:  # foreach and fused operations return nothing
            outputs = inputs
        storages = {tensor.untyped_storage()._cdata for tensor in inputs.values()}
        is_view = all(tensor.untyped_storage()._cdata in storages for tensor in outputs.values())
        if "empty" not in schema.name and (schema.is_mutable or not is_view):
            self.kernels += 1
            self.bytes += sum(map(_bytes, inputs.values())) + sum(map(_bytes, outputs.values()))
        return outcome


def _bytes(tensor: Tensor) -> int:
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else min(length, 1)
    return size


class Saved(saved_tensors_hooks):
    """Counts the bytes that autograd saves inside it for the backward pass, without `given` tensors."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        self._seen = {tensor.untyped_storage()._cdata for tensor in given}
        self._alive: list[Tensor] = []  # otherwise the address of a freed storage could be used again
        self.bytes = 0
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor


@dataclass
class Times:
    """Seconds of one call in each block: by the clock of comparisons, in wall time, and of the host."""

    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)


class Bench:
    """A device, its clock and its ceilings.

    The clock: events on a GPU; on a CPU with one thread the CPU seconds of this process, in which the neighbours on a
    shared machine do not count; with several threads the wall.
    """

    def __init__(self, device: str, threads: int | None, rounds: int | None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: this machine has no GPU that PyTorch can use; --device cpu or auto")
        here = Machine(device=cast(Any, device))
        self.cuda = here.uses_gpu
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.cores = available_cores()
        self.threads, self.rounds = threads or (self.cores if self.cuda else 1), rounds or 10
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.benchmark = True
        if not self.cuda:
            keep_memory()
        self.name = str(here.description()["device" if self.cuda else "cpu"])
        self.clock = "events" if self.cuda else "CPU seconds of one thread" if self.threads == 1 else "wall"
        self.copy = self.matmul = 0.0

    def once(self, call: Callable[[], object], count: int = 1) -> tuple[float, float, float]:
        """Seconds of one of `count` calls: by the clock, in wall time, and of the host (on a GPU, to issue the call)."""
        if self.cuda:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            started = time.perf_counter()
            first.record()
            for _ in range(count):
                call()
            last.record()
            host = time.perf_counter() - started
            torch.cuda.synchronize()
            wall = time.perf_counter() - started
            return first.elapsed_time(last) / 1e3 / count, wall / count, host / count
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return (cpu if self.threads == 1 else wall) / count, wall / count, cpu / count

    def interleave(
        self, calls: Mapping[str, Callable[[], object]], *, count: int = 1, warm_up: int
    ) -> dict[str, Times]:
        """Time `calls` in blocks of `count`, in the order A B C C B A ..., after `warm_up` calls of each."""
        for call in calls.values():
            for _ in range(warm_up):
                call()
        times = {name: Times() for name in calls}
        for number in range(self.rounds):
            for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
                seconds, wall, host = self.once(calls[name], count)
                times[name].seconds.append(seconds)
                times[name].wall.append(wall)
                times[name].host.append(host)
        return times

    def measure_ceilings(self) -> None:
        """Bytes per second of a large copy (read and written) and FLOP per second of a matrix product, the best of this call."""
        source = torch.randn(1 << (28 if self.cuda else 25), device=self.device)  # 1 GiB; 128 MiB
        target = torch.empty_like(source)
        n, dtype = (8192, torch.bfloat16) if self.cuda else (1536, torch.float32)
        left, right = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
        target.copy_(source), left @ right
        for _ in range(6):
            self.copy = max(self.copy, 2 * source.nbytes / self.once(lambda: target.copy_(source))[0])
            self.matmul = max(self.matmul, 2 * n**3 / self.once(lambda: left @ right)[0])

    def context(self) -> Row:
        """The settings that are printed above a table."""
        return {
            "device": self.name,
            "threads": self.threads,
            "torch": torch.__version__,
            "date": datetime.now(UTC).date().isoformat(),
            "clock": self.clock,
            "rounds": self.rounds,
            "copy GB/s": f"{self.copy / 1e9:.1f}",
            "matmul GFLOP/s": f"{self.matmul / 1e9:.1f}",
            "load": f"{os.getloadavg()[0]:.1f}",
        }

    def figures(self, times: Times, count: int, *, moved: float = 0, flops: float = 0) -> Row:
        """The columns of a variant with `count` images per call: time with its quartiles, rate, and shares of the ceilings."""
        seconds = median(times.seconds)
        row: Row = {**spread("ms", [1e3 * one for one in times.seconds]), "wall ms": 1e3 * median(times.wall)}
        row["images/s"] = count / seconds
        if moved:
            row["% of byte ceiling"] = 100 * moved / self.copy / seconds
        if flops:
            row["MFU %"] = 100 * flops / self.matmul / seconds
        if moved or flops:
            row["ceiling images/s"] = count / max(moved / self.copy, flops / self.matmul)
        if self.cuda:
            row["host us"] = 1e6 * median(times.host)
        return row


def spread(name: str, values: Sequence[float]) -> Row:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {name: median(values), f"{name} low": low, f"{name} high": high}


def overhead(times: Times, baseline: Times) -> Row:
    """The columns that compare a step with one without attention, in pairs within a round."""
    pairs = zip(times.seconds, baseline.seconds, strict=True)
    return spread("overhead %", [100 * (one / other - 1) for one, other in pairs])


def relative(found: Tensor, exact: Tensor) -> float:
    """The norm of the error relative to the norm of the exact value."""
    return float((found.double() - exact).norm() / exact.norm())


def gradients(network: nn.Module) -> Tensor:
    """The gradients of all weights as one float64 vector."""
    return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    print(line, file=sys.stderr, flush=True)
