"""`bam-bench`: what a step, BAM itself, the input, an epoch and a packed machine cost, beside what the machine could do.

What each figure means and how it is measured: docs/performance.md.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from bam_exp import config
from bam_exp.attention import BAM, CBAM, ECA, SE, attach
from bam_exp.attention.bam import ExpandedBatchNorm
from bam_exp.backbones.backbone import Residual
from bam_exp.data import DeviceLoader
from bam_exp.trainer import Machine

Row = dict[str, Any]
Attention = Literal["none", "bam", "released"]

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
RELEASED: dict[str, Any] = {"combine": "product", "norm": "released", "rounding": "floor"}
"""Knobs of the released BAM."""


# What is compared


class LiteralBAM(BAM):
    """BAM as the authors' code writes it: both branches expanded to N x C x H x W, and `attention * x`.

    The product lies as its first factor does, so what was channels_last leaves as N x C x H x W. For training mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel_norm(self.channel(F.avg_pool2d(x, x.shape[2:]).flatten(1)))[:, :, None, None].expand_as(
            x
        )
        spatial = self.spatial(x).expand_as(x)
        if isinstance(self.spatial_norm, ExpandedBatchNorm):
            weight, bias = self.spatial_norm.weight, self.spatial_norm.bias
            spatial = F.batch_norm(spatial, None, None, weight, bias, training=True)
        attention = 1 + torch.sigmoid(channel + spatial if self.combine == "sum" else channel * spatial)
        return attention * x


@dataclass(frozen=True)
class Variant:
    """One way of computing the same training step."""

    name: str
    attention: Attention = "bam"
    channels_last: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: Literal["off", "on", "reduce-overhead"] = "off"
    sgd: Literal["default", "foreach", "fused"] = "fused"
    syncs: bool = False
    """Reads loss and hits back to the host in every step."""
    baseline: str = ""
    """The variant without attention that it is compared with."""

    @property
    def counted_as(self) -> tuple[object, ...]:
        """Equal for variants with the same operations in eager mode."""
        return self.attention, self.channels_last, self.precision, self.sgd


def ladder(cuda: bool, *, compiled: bool) -> list[Variant]:
    """From the typical peer's step to ours, a lever at a time, with baselines and the released BAM beside it."""
    peer = partial(Variant, attention="released", channels_last=False)
    fast = partial(Variant, precision="bfloat16" if cuda else "float32")
    eager = "no attention"
    variants = [
        peer("typical peer step", sgd="default", syncs=True),
        peer("+ no host sync", sgd="default"),
        peer("+ fused SGD"),
        Variant("+ channels_last", "released", baseline="" if cuda else eager),
        *([fast("+ bfloat16", attention="released", baseline=eager)] if cuda else []),
        fast("+ our BAM", baseline=eager),
        fast(eager, attention="none"),
    ]
    modes: list[tuple[Any, str, str]] = [
        ("on", "+ torch.compile", "compiled"),
        ("reduce-overhead", "+ CUDA graphs", "graphs"),
    ]
    for mode, lever, word in modes[: (1 + cuda) * compiled]:
        made, baseline = partial(fast, compile=mode), f"{word}, no attention"
        variants += [
            made(lever, baseline=baseline),
            made(f"{word}, released BAM", attention="released", baseline=baseline),
            made(baseline, attention="none"),
        ]
    return variants


class Step:
    """A training step of a variant: forward, cross-entropy, backward, SGD, on the same batch each time."""

    def __init__(self, variant: Variant, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.variant, self.labels = variant, labels
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.images, self.network = images.contiguous(memory_format=layout), network.to(memory_format=layout)
        if variant.compile != "off":
            self.network.compile(dynamic=False, mode=None if variant.compile == "on" else variant.compile)
        form: dict[str, Any] = {} if variant.sgd == "default" else {variant.sgd: True}
        self.optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, **form)
        self.sums = torch.zeros(2, device=images.device)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Forward and backward; logits and loss."""
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.variant.precision == "bfloat16"):
            logits = self.network(self.images)
            loss = F.cross_entropy(logits, self.labels)
        torch.autograd.backward(loss)
        return logits.detach(), loss.detach()

    def __call__(self) -> Tensor:
        logits, loss = self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        hits = (logits.argmax(1) == self.labels).sum()
        if self.variant.syncs:
            loss.item(), hits.item()
        else:
            self.sums[0].add_(loss)
            self.sums[1].add_(hits)
        return loss


# What is counted


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside it: ATen operations that compute (`kernels`), and the `bytes` that they read and write.

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
    """The bytes that autograd keeps for the backward pass of what runs inside it, apart from `given` tensors."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        self._seen = {tensor.untyped_storage()._cdata for tensor in given}
        self._alive: list[Tensor] = []  # or the address of a freed storage could come again
        self.bytes = 0
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor


# How it is timed


@dataclass
class Times:
    """Of each block, the seconds of one call: by the clock of comparisons, by the wall, and of the host."""

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
        self.cores = len(os.sched_getaffinity(0))
        self.threads, self.rounds = threads or (self.cores if self.cuda else 1), rounds or 10
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.benchmark = True
        self.name = str(here.description()["device" if self.cuda else "cpu"])
        self.clock = "events" if self.cuda else "CPU seconds of one thread" if self.threads == 1 else "wall"
        self.copy = self.matmul = 0.0

    def once(self, call: Callable[[], object], count: int = 1) -> tuple[float, float, float]:
        """Seconds of one of `count` calls: by the clock, by the wall, and of the host (to issue it, on a GPU)."""
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
        """Bytes a second of a large copy (read and written), FLOP a second of a matrix product: the best of this call."""
        source = torch.randn(1 << (28 if self.cuda else 25), device=self.device)  # 1 GiB; 128 MiB
        target = torch.empty_like(source)
        n, dtype = (8192, torch.bfloat16) if self.cuda else (1536, torch.float32)
        left, right = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
        target.copy_(source), left @ right
        for _ in range(6):
            self.copy = max(self.copy, 2 * source.nbytes / self.once(lambda: target.copy_(source))[0])
            self.matmul = max(self.matmul, 2 * n**3 / self.once(lambda: left @ right)[0])

    def context(self) -> Row:
        """What stands above a table."""
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
        """Of `count` images a call: time with its quartiles, rate, and shares of what the machine could do."""
        seconds = median(times.seconds)
        row: Row = {**_spread("ms", [1e3 * one for one in times.seconds]), "wall ms": 1e3 * median(times.wall)}
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


def _spread(name: str, values: Sequence[float]) -> Row:
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {name: median(values), f"{name} low": low, f"{name} high": high}


def _overhead(times: Times, baseline: Times) -> Row:
    """In pairs of a round."""
    pairs = zip(times.seconds, baseline.seconds, strict=True)
    return _spread("overhead %", [100 * (one / other - 1) for one, other in pairs])


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _gradients(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# bam-bench step


LIMITS = {
    ("cpu", "float32"): (1e-4, 0.02),
    ("cuda", "float32"): (0.02, 0.4),  # TF32 in the convolutions
    ("cuda", "bfloat16"): (0.1, 0.6),
}
"""How far logits and gradients may be from float64's, relative to their norm."""


def network_of(backbone: str, attention: Attention, *, literal: bool = False) -> nn.Module:
    """The CIFAR-100 network of conf/backbone/<backbone>.yaml with an attention, with the same weights each time.

    Residual branches start at a fifth of their gain: at a random start rounding alone decides enough ReLUs otherwise than
    float64 does that the gradients' errors say nothing.
    """
    kind, knobs = config.arguments(config.compose([f"backbone={backbone}"]), "backbone")
    assert kind is not None
    torch.manual_seed(0)
    network: nn.Module = kind(100, **knobs)
    for block in network.modules():
        if isinstance(block, Residual):
            layers = [layer for layer in block.branch if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
            layers[-1].weight.data.mul_(0.2)
    if attention != "none":
        literal = literal or attention == "released"
        attach(network, LiteralBAM if literal else BAM, **(RELEASED if attention == "released" else {}))
    return network


def step(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Training steps of one network, from the typical peer's to ours."""
    batch = options.batch or (128 if bench.cuda else 16)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, 3, 32, 32), generator=generator, dtype=torch.uint8).to(bench.device)
    labels = torch.randint(100, (batch,), generator=generator).to(bench.device)
    mean, std = (torch.tensor(of, device=bench.device).view(3, 1, 1) for of in (MEAN, STD))
    images = (pixels / 255 - mean) / std

    exact: dict[Attention, tuple[Tensor, Tensor, int]] = {}
    for attention in ("none", "bam", "released"):
        _say(f"{options.backbone}, attention {attention}: float64")
        network = network_of(options.backbone, attention, literal=True).to(bench.device).double()
        with FlopCounterMode(display=False) as flops:
            logits, _ = Step(Variant("", attention), network, images.double(), labels).gradients()
        exact[attention] = logits, _gradients(network), flops.get_total_flops()

    variants = ladder(bench.cuda, compiled=not options.no_compile)
    steps: dict[str, Step] = {}
    rows: dict[str, Row] = {}
    counts: dict[tuple[object, ...], tuple[int, int, int]] = {}
    for variant in variants:
        _say(f"{variant.name}: checking" if variant.compile == "off" else f"{variant.name}: compiling, checking")
        network = network_of(options.backbone, variant.attention).to(bench.device)
        one = steps[variant.name] = Step(variant, network, images, labels)
        row = rows[variant.name] = {"of": f"{options.backbone}, batch {batch}", "variant": variant.name}
        row["attention"] = variant.attention
        started = time.perf_counter()
        logits, _ = one.gradients()
        if variant.compile != "off":
            row["compile s"] = time.perf_counter() - started
        row["logits error"] = _relative(logits, exact[variant.attention][0])
        row["gradient error"] = _relative(_gradients(network), exact[variant.attention][1])
        logits_limit, limit = LIMITS[bench.device.type, variant.precision]
        row["check"] = "ok" if row["logits error"] < logits_limit and row["gradient error"] < limit else "FAILED"
        one.optimizer.zero_grad()
        if variant.compile == "off" and variant.counted_as not in counts:
            saved = Saved(network.parameters())
            with Counter() as counter, saved:
                one()
            counts[variant.counted_as] = counter.kernels, counter.bytes, saved.bytes

    _say("timing")
    bench.measure_ceilings()
    warm_up, count = (20, 10) if bench.cuda else (1, 1)
    times = bench.interleave(steps, count=count, warm_up=warm_up)
    bench.measure_ceilings()
    for variant in variants:
        kernels, moved, saved_bytes = counts[variant.counted_as]
        row = rows[variant.name]
        row |= bench.figures(times[variant.name], batch, moved=moved, flops=exact[variant.attention][2])
        if variant.baseline:
            row |= _overhead(times[variant.name], times[variant.baseline])
            row["FLOPs overhead %"] = 100 * (exact[variant.attention][2] / exact["none"][2] - 1)
        if variant.compile == "off":
            row |= {"kernels": kernels, "MB an image": moved / batch / 1e6, "saved MB": saved_bytes / 1e6}
        if bench.cuda:
            row |= _on_cuda(steps[variant.name])
    return [*rows.values(), *(_agreement(bench, options, images, labels) if options.agree else [])]


def _on_cuda(one: Step) -> Row:
    """Kernels by the profiler, and the largest memory of a step with what the variant keeps between steps."""
    from torch._dynamo.utils import counters

    own = [*one.network.parameters(), *one.network.buffers()]
    own += [state["momentum_buffer"] for state in one.optimizer.state.values()]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    one()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before + sum(tensor.nbytes for tensor in own)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        one()
        torch.cuda.synchronize()
    kernels = sum(event.device_type.name == "CUDA" for event in profile.events() or [])
    row: Row = {"kernels": kernels, "peak MB": peak / 1e6}
    if one.variant.compile == "reduce-overhead":
        row["graphs skipped"] = counters["inductor"]["cudagraph_skips"]
    return row


def _agreement(bench: Bench, options: argparse.Namespace, images: Tensor, labels: Tensor) -> list[Row]:
    """How far losses drift from those of eager mode over `--agree` steps: compiled, and by other rounding alone."""
    fast: dict[str, Any] = {"precision": "bfloat16" if bench.cuda else "float32"}
    ways = {
        "eager": Variant("", **fast),
        **({} if options.no_compile else {"compiled": Variant("", compile="on", **fast)}),
        "eager, rounded otherwise (float32; on a CPU another layout)": Variant("", channels_last=bench.cuda),
    }
    losses: dict[str, Tensor] = {}
    for name, variant in ways.items():
        _say(f"losses over {options.agree} steps: {name}")
        one = Step(variant, network_of(options.backbone, "bam").to(bench.device), images, labels)
        order = torch.Generator().manual_seed(1)
        found = []
        for _ in range(options.agree):  # another image gets another label in each step
            one.labels = labels[torch.randperm(len(labels), generator=order).to(bench.device)]
            found.append(one())
        losses[name] = torch.stack(found).double().cpu()
    return [
        {
            "of": f"losses over {options.agree} steps",
            "variant": name,
            "mean loss": float(loss.mean()),
            "mean difference": float((loss - losses["eager"]).abs().mean()),
            "largest difference": float((loss - losses["eager"]).abs().max()),
        }
        for name, loss in losses.items()
    ]


# bam-bench module


MAPS = ((256, 32), (512, 16), (1024, 8))
"""Width and side of the maps at the three seams of a CIFAR ResNet-50."""

Make = Callable[[int], nn.Module]


def module(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Only BAM, forward and backward, at the three seams of a CIFAR ResNet-50."""
    forms: dict[str, Make] = {
        "released BAM": partial(LiteralBAM, **RELEASED),
        "released BAM in our form": partial(BAM, **RELEASED),
        "our BAM in the released form": LiteralBAM,
        "our BAM": BAM,
    }
    others: dict[str, Make] = {"SE": SE, "ECA": ECA, "CBAM": CBAM}
    if not options.no_compile:
        others |= {f"{name}, compiled": forms[name] for name in ("released BAM", "our BAM")}
    bench.measure_ceilings()
    rows = []
    for channels, side in MAPS:
        shape = (options.batch or (128 if bench.cuda else 16), channels, side, side)
        rows += _modules(bench, shape, forms | others if channels == MAPS[0][0] else forms)
    return rows


def _modules(bench: Bench, shape: tuple[int, ...], kinds: Mapping[str, Make]) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    x, grad = (
        torch.randn(shape, generator=generator).to(bench.device, dtype).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    x.requires_grad_()
    of = " x ".join(map(str, shape))
    calls: dict[str, Callable[[], Tensor]] = {"a copy of the map": lambda: x.detach().clone()}
    rows: dict[str, Row] = {"a copy of the map": {"of": of, "variant": "a copy of the map", "kernels": 1, "passes": 2}}
    for name, make in kinds.items():
        _say(f"{of}: {name}")
        torch.manual_seed(0)
        one = make(shape[1]).to(bench.device).to(memory_format=torch.channels_last)
        rows[name] = {"of": of, "variant": name}

        def call(one: nn.Module = one) -> Tensor:
            x.grad = None
            one.zero_grad()
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.cuda):
                y: Tensor = one(x)
            torch.autograd.backward(y, grad.to(y.dtype))
            return y.detach()

        if name.endswith(", compiled"):
            one.compile(dynamic=False)
            started = time.perf_counter()
            call()
            rows[name]["compile s"] = time.perf_counter() - started
        y = call()
        error = _error(make, one, x, grad, y)
        rows[name] |= {"error": error, "check": "ok" if error < (0.05 if bench.cuda else 1e-4) else "FAILED"}
        rows[name]["keeps layout"] = "yes" if y.is_contiguous(memory_format=torch.channels_last) else "NO"
        if not name.endswith(", compiled"):
            everything, saved = Saved(one.parameters()), Saved([x, *one.parameters()])
            with Counter() as counter:
                call()
            with everything:
                call()
            with saved:
                call()
            rows[name] |= {"kernels": counter.kernels, "passes": counter.bytes / x.nbytes}
            rows[name] |= {"saved MB": everything.bytes / 1e6, "saved beside the map MB": saved.bytes / 1e6}
            released = rows["released BAM"]["saved beside the map MB"]
            rows[name]["of the released"] = rows[name]["saved beside the map MB"] / released
        calls[name] = call
    count = max(1, round((2e9 if bench.cuda else 5e6) / x.nbytes))
    times = bench.interleave(calls, count=count, warm_up=20 if bench.cuda else 2)
    bench.measure_ceilings()
    released = median(times["released BAM"].seconds)
    for name, row in rows.items():
        passes = row.get("passes") or rows[name.removesuffix(", compiled")]["passes"]
        figures = bench.figures(times[name], shape[0], moved=passes * x.nbytes)
        rows[name] = {**row, **figures, "time / released": median(times[name].seconds) / released}
    return list(rows.values())


def _error(make: Make, one: nn.Module, x: Tensor, grad: Tensor, y: Tensor) -> float:
    """The largest error of output and gradients (of the map, of all weights) against float64, BAM's in the literal form."""
    torch.manual_seed(0)
    exact = make(x.shape[1]).to(x.device).double()
    if type(exact) is BAM:
        exact.forward = LiteralBAM.forward.__get__(exact)  # type: ignore[method-assign]
    leaf = x.detach().double().requires_grad_()
    expected = exact(leaf)
    torch.autograd.backward(expected, grad.double())
    assert x.grad is not None
    assert leaf.grad is not None
    pairs = [(y, expected.detach()), (x.grad, leaf.grad), (_gradients(one), _gradients(exact))]
    return max(_relative(found, wanted) for found, wanted in pairs)


# bam-bench input


class Photos(Dataset[tuple[Any, int]]):
    """uint8 images H x W x 3 and labels in memory; an image at a time, as torchvision's own CIFAR data sets do it."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Any], *, pil: bool) -> None:
        self.images: Any = images.permute(0, 2, 3, 1).contiguous().numpy() if pil else images
        self.labels = labels.tolist()
        self.transform, self.pil = transform, pil

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = self.images[index]
        return self.transform(Image.fromarray(image) if self.pil else image), self.labels[index]


def peer_loader(
    images: Tensor, labels: Tensor, *, batch: int, workers: int, pil: bool = True, train: bool = True
) -> Any:
    """The typical peer's loader, our own re-implementation: torchvision's transforms on PIL images, or on tensors."""
    from torchvision import transforms
    from torchvision.transforms import v2

    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
    convert = transforms.ToTensor() if pil else v2.ToDtype(torch.float32, scale=True)
    transform = transforms.Compose([*crop, convert, transforms.Normalize(MEAN, STD)])
    return DataLoader(
        Photos(images, labels, transform, pil=pil),
        batch_size=batch,
        shuffle=train,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def input_(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Augmented batches of CIFAR's size: an image at a time on the host, or a batch at a time on the device."""
    batch, many, few = options.batch or 128, 20_480, 1_280
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (many, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(100, (many,), generator=generator)
    ours = partial(DeviceLoader, batch_size=batch, mean=MEAN, std=STD, seed=0, device=bench.device)
    theirs = partial(peer_loader, batch=batch)
    plain = [
        next(iter(loader(images[:batch], labels[:batch])))[0]
        for loader in (ours, partial(theirs, workers=0, train=False))
    ]
    check = "ok" if _relative(plain[0].cpu(), plain[1].double()) < 1e-6 else "FAILED"
    by_wall = f"PIL, {bench.cores} workers (wall)"
    loaders = {
        "PIL, in the process": (theirs(images[:few], labels[:few], workers=0), few),
        "tensors, in the process": (theirs(images[:few], labels[:few], workers=0, pil=False), few),
        by_wall: (theirs(images[:few], labels[:few], workers=bench.cores), few),
        "ours": (ours(images, labels, pad=4, flip=True, shuffle=True), many),
    }

    def run_through(loader: Any) -> None:
        for one in loader:
            for tensor in one:
                tensor.to(bench.device, non_blocking=True)

    bench.measure_ceilings()
    times = bench.interleave({name: partial(run_through, loader) for name, (loader, _) in loaders.items()}, warm_up=1)
    rows: list[Row] = []
    for name, (_, count) in loaders.items():
        each = [seconds / count for seconds in (times[name].wall if name == by_wall else times[name].seconds)]
        row: Row = {"of": f"batches of {batch}", "variant": name, **_spread("us an image", [1e6 * one for one in each])}
        row |= {"images/s": 1 / median(each), "x PIL": rows[0]["us an image"] * 1e-6 / median(each) if rows else 1}
        rows.append(row)
    rows[-1] |= {
        "check": check,
        "% of byte ceiling": 100 * 15 * 32 * 32 / bench.copy / (rows[-1]["us an image"] * 1e-6),
    }
    return rows


# bam-bench epoch


def epoch(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """What a loop adds to a step, and whole epochs through bam-train."""
    return [*_loops(bench), *_epochs(bench, options)]


def _loops(bench: Bench) -> list[Row]:
    """Host time a step of four loops around a network that costs next to nothing."""
    import pytorch_lightning as pl
    import torchmetrics

    from bam_exp.data import Shapes
    from bam_exp.progress import Curves, Progress
    from bam_exp.tasks import Classification
    from bam_exp.trainer import Interruption, Keeper

    steps, skipped, batch = 300, 40, 20
    data = Shapes(Path(), train_size=batch * steps, test_size=20)
    here = Machine(device=cast(Any, bench.device.type), threads=bench.threads, compile="off", precision="float32")
    images, labels = data.load("train")
    loader = DeviceLoader(
        images, labels, batch_size=batch, mean=data.mean, std=data.std, seed=0, device=bench.device, pad=2, flip=True
    )
    now = time.process_time if bench.threads == 1 and not bench.cuda else time.perf_counter

    def task() -> Classification:
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, data.num_classes))
        made = Classification(network.to(bench.device), data, 0, epochs=1, batch_size=batch)
        made.sgd |= here.sgd_form
        return made

    class Plain(pl.LightningModule):
        """Lightning, and nothing logged."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.optimizers_of = task().network, task().sgd
            self.mean = torchmetrics.MeanMetric()
            self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=data.num_classes)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.network.parameters(), **self.optimizers_of)  # type: ignore[arg-type]

        def training_step(self, given: tuple[Tensor, Tensor], _index: int) -> Tensor:
            return F.cross_entropy(self.network(given[0]), given[1])

    class Logging(Plain):
        """The typical peer's: two torchmetrics and two `self.log` in every step; our own re-implementation."""

        def training_step(self, given: tuple[Tensor, Tensor], _index: int) -> Tensor:
            logits = self.network(given[0])
            loss = F.cross_entropy(logits, given[1])
            self.mean(loss)
            self.accuracy(logits, given[1])
            self.log("train/loss", self.mean, on_step=False, on_epoch=True)
            self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
            return loss

    class Clock(pl.Callback):
        first = last = 0.0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == skipped:
                self.first = now()
            if batch_idx == steps - 1:
                self.last = now()

    def raw() -> float:
        made, started = task(), 0.0
        optimizer = torch.optim.SGD(made.network.parameters(), **made.sgd)  # type: ignore[arg-type]
        for index, (pixels, target) in enumerate(loader):
            if index == skipped:
                started = now()
            if index == steps - 1:
                break
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(made.network(pixels), target))
            optimizer.step()
        return now() - started

    def theirs(kind: type[pl.LightningModule]) -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                accelerator="gpu" if bench.cuda else "cpu",
                devices=1,
                max_epochs=1,
                callbacks=[clock],
                default_root_dir=folder,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            trainer.fit(kind(), loader)
        return clock.last - clock.first

    def ours() -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            callbacks = [clock, Progress("bench"), Keeper(here, Interruption())]
            here.trainer(folder, logger=Curves(folder), callbacks=callbacks, max_epochs=1).fit(task())
        return clock.last - clock.first

    loops: dict[str, Callable[[], float]] = {
        "raw loop": raw,
        "Lightning, nothing logged": partial(theirs, Plain),
        "Lightning, 2 torchmetrics and 2 self.log": partial(theirs, Logging),
        "ours": ours,
    }
    _say("loops around a step")
    found: dict[str, list[float]] = {name: [] for name in loops}
    with _quiet():
        for number in range(1 + bench.rounds // 2):
            for name in list(loops)[:: 1 if number % 2 == 0 else -1]:
                seconds = loops[name]()
                if number:  # the first round warms up
                    found[name].append(1e6 * seconds / (steps - 1 - skipped))
    base, bare, logging, mine = (median(times) for times in found.values())
    rows: list[Row] = [
        {
            "of": "a step's host time around a network of one linear layer",
            "variant": name,
            **_spread("us a step", times),
            "added us": median(times) - base,
        }
        for name, times in found.items()
    ]
    rows[-1]["of what 2 and 2 add"] = (mine - base) / (logging - base)
    rows[-1]["of what they add to Lightning"] = (mine - base) / (logging - bare)
    return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No lines of Lightning and of our progress, and the signals' handlers as before."""
    import logging
    import warnings

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    handlers = [signal.getsignal(number) for number in numbers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def _epochs(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Epochs of the built-in data through `bam-train`: evaluation, checkpoint, curves and all; and the typical peer's."""
    sizes = (50_000, 10_000) if bench.cuda else (1_280, 320)
    backbone = options.backbone or ("resnet50" if bench.cuda else "resnet20")
    batch, epochs = options.batch or 128, 6 if bench.cuda else 3
    words = _words(bench, sizes, backbone, batch, epochs, bench.threads)
    levers = {"bam-train": "", "bam-train attention=none": "attention=none"}
    if bench.cuda:
        modes = ("off", "reduce-overhead")
        levers |= {f"bam-train trainer.compile={mode}": f"trainer.compile={mode}" for mode in modes}
    rows: list[Row] = []
    for name, lever in levers.items():
        _say(name)
        with tempfile.TemporaryDirectory() as folder:
            result = bam_train([*words, *lever.split(), f"output_dir={folder}"])
        peak = result["peak_memory_mib"] * 2**20 / 1e6
        rows.append({"variant": name, "s/epoch": result["seconds_per_epoch"], "peak MB": peak})
    _say("the typical peer's epochs")
    seconds, waited = _peer_epochs(bench, sizes, backbone, batch, epochs)
    rows.append({"variant": "typical peer loop", "s/epoch": seconds, "data wait %": 100 * waited})
    of = f"epochs of {sizes[0]} + {sizes[1]} images, {backbone}, batch {batch}, wall"
    for row in rows:
        row |= {"of": of, "images/s": sizes[0] / row["s/epoch"], "x ours": row["s/epoch"] / rows[0]["s/epoch"]}
        row["runs of 300 epochs an hour"] = 12 / row["s/epoch"]
    return rows


def _words(bench: Bench, sizes: tuple[int, int], backbone: str, *numbers: int) -> list[str]:
    batch, epochs, threads = numbers
    return (
        f"data=shapes data.train_size={sizes[0]} data.test_size={sizes[1]} backbone={backbone} recipe=demo "
        f"recipe.batch_size={batch} recipe.epochs={epochs} trainer.device={bench.device.type} trainer.threads={threads}"
    ).split()


def _peer_epochs(bench: Bench, sizes: tuple[int, int], backbone: str, batch: int, epochs: int) -> tuple[float, float]:
    """Median seconds of the typical peer's epoch, evaluation included, and the share of them that waits for batches.

    Our own re-implementation: PIL and worker processes, float32 N x C x H x W, the released BAM, two syncs a step.
    """
    generator = torch.Generator().manual_seed(0)
    train, test = (
        peer_loader(
            torch.randint(256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.randint(20, (size,), generator=generator),
            batch=batch,
            workers=bench.cores,
            train=training,
        )
        for size, training in zip(sizes, (True, False), strict=True)
    )
    network = network_of(backbone, "released").to(bench.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    found, shares = [], []
    for _ in range(epochs):
        started, waited = time.perf_counter(), 0.0
        for loader in (train, test):
            network.train(loader is train)
            batches = iter(loader)
            for _ in range(len(loader)):
                before = time.perf_counter()
                given = next(batches)
                waited += time.perf_counter() - before
                pixels, target = (tensor.to(bench.device) for tensor in given)
                with torch.set_grad_enabled(loader is train):
                    logits = network(pixels)
                    loss = F.cross_entropy(logits, target)
                if loader is train:
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                loss.item(), (logits.argmax(1) == target).sum().item()
        found.append(time.perf_counter() - started)
        shares.append(waited / found[-1])
    return median(found), median(shares)


def bam_train(words: Sequence[str]) -> Row:
    """The result of one run of the real command, in a process of its own; the last word is its `output_dir`.

    Raises:
        ValueError: if it failed, with its last line.
    """
    done = subprocess.run([sys.executable, "-m", "bam_exp", *words], capture_output=True, text=True, check=False)
    results = list(Path(words[-1].removeprefix("output_dir=")).glob("runs/**/result.json"))
    if done.returncode or not results:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ValueError(f"bam-train {' '.join(words)}: {last}")
    result: Row = json.loads(results[0].read_text())
    return result


# bam-bench sweep


def sweep(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Several runs on the device at once: what each then takes, and what all together get through."""
    sizes, epochs = ((50_000, 10_000), 5) if bench.cuda else ((1_280, 320), 4)
    backbones = ["preresnet110", "resnet50", "wrn28_10"] if bench.cuda else ["resnet20"]
    packs = options.packed or ([1, 2, 4, 8] if bench.cuda else sorted({1, bench.cores}))
    rows = []
    for backbone in [options.backbone] if options.backbone else backbones:
        alone = 0.0
        for packed in packs:
            _say(f"{backbone}: {packed} at once")
            threads = max(1, bench.cores // packed)
            words = _words(bench, sizes, backbone, options.batch or 128, epochs, threads)
            words.append(f"trainer.runs_per_gpu={packed}")
            with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(packed) as pool:
                each = [[*words, f"seed={seed}", f"output_dir={folder}/{seed}"] for seed in range(packed)]
                results = list(pool.map(bam_train, each))
            # Epochs in the middle of a run, when all are at it: the first compiles, and they do not end together.
            rate = sum(sizes[0] / result["seconds_per_epoch"] for result in results)
            alone = alone or rate
            rows.append(
                {
                    "of": f"{backbone} and BAM, epochs of {sizes[0]} + {sizes[1]} images, wall",
                    "variant": f"{packed} at once",
                    "threads each": threads,
                    "s/epoch": median(result["seconds_per_epoch"] for result in results),
                    "images/s of all": rate,
                    "x the first": rate / alone,
                    "runs of 300 epochs an hour": 12 * rate / sizes[0],
                    "peak MB each": max(result["peak_memory_mib"] for result in results) * 2**20 / 1e6,
                }
            )
    return rows


# What is written


CONTEXT = ("device", "threads", "torch", "date", "clock", "rounds", "copy GB/s", "matmul GFLOP/s", "load")
DETAILS = ("attention", "wall ms", "ceiling images/s", "logits error", "gradient error", "MB an image", "saved MB")
"""Columns of the files that a terminal has no room for, as it has none for spreads."""


def write(folder: Path, command: str, rows: Sequence[Row], context: Row) -> list[Path]:
    """Put the rows of one sub-command into <device>.csv in place of its earlier ones; make <device>.md and .png from it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(context["device"]).lower()).strip("-")
    table, text, chart = (folder / f"{name}.{suffix}" for suffix in ("csv", "md", "png"))
    everything: list[Row] = [{"command": command, **row, **context} for row in map(_rounded, rows)]
    if table.is_file():
        with table.open(newline="") as file:
            everything += [row for row in csv.DictReader(file) if row["command"] != command]
    everything.sort(key=lambda row: list(COMMANDS).index(row["command"]))
    columns = dict.fromkeys(key for row in everything for key in row if key not in CONTEXT)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *CONTEXT], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(everything)
    lines = [f"# Measured on {context['device']}", "", "By `bam-bench`; docs/performance.md says what each figure is."]
    for one in COMMANDS:
        if found := [row for row in everything if row["command"] == one]:
            lines += ["", f"## bam-bench {one}", "", _above(found[0])]
            for of, keys, cells in tables(found):
                rule = ["---" if key == "variant" else "--:" for key in keys]
                lines += ["", f"**{of}**", "", *("| " + " | ".join(line) + " |" for line in (keys, rule, *cells))]
    draw(chart, everything)
    text.write_text("\n".join([*lines, "", f"![The rates, with the ceilings drawn in]({chart.name})", ""]))
    return [table, text, chart]


def _rounded(row: Row) -> Row:
    """Four significant digits."""
    return {key: f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else
            f"{value:.0f}" if isinstance(value, float) else value for key, value in row.items()}  # fmt: skip


def _above(row: Row) -> str:
    return ", ".join(f"{key} {row[key]}" for key in CONTEXT)


def tables(rows: Sequence[Row], *, brief: bool = False) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A table of each thing that rows are `of`: what, the columns that have something in them, the cells."""
    for of in dict.fromkeys(row["of"] for row in rows):
        found = [row for row in rows if row["of"] == of]
        hidden = (*CONTEXT, "command", "of", *(DETAILS if brief else ()))
        given = dict.fromkeys(key for row in found for key in row if row[key] not in ("", None))
        keys = [key for key in given if key not in hidden and not key.endswith((" low", " high"))]

        def cell(row: Row, key: str, brief: bool = brief) -> str:
            low = "" if brief else row.get(f"{key} low", "")
            return f"{row.get(key, '')}" + (f" ({low} to {row[f'{key} high']})" if low != "" else "")

        yield of, keys, [[cell(row, key) for key in keys] for row in found]


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Bars of the steps and of BAM alone in images a second, each with the ceiling of its bytes and FLOPs drawn in."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = []
    for command, what in (("step", "training step"), ("module", "attention alone, forward and backward")):
        found = [row for row in rows if row["command"] == command and row.get("ceiling images/s") not in ("", None)]
        found = [row for row in found if row["of"] == found[0]["of"] and "copy" not in row["variant"]]
        if found:
            panels.append((f"{what}: {found[0]['of']}", found))
    if not panels:
        return
    heights = [len(found) + 2 for _, found in panels]
    size = (9, 0.36 * sum(heights))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (title, found) in zip(axes[:, 0], panels, strict=True):
        for y, row in enumerate(found):
            rate, limit, name = float(row["images/s"]), float(row["ceiling images/s"]), str(row["variant"])
            plain = "no attention" in name or name in ("SE", "ECA", "CBAM")
            theirs = row.get("attention") == "released" or ("released" in name and "in our form" not in name)
            axis.barh(y, rate, 0.66, color="#b0b0b0" if plain else "#d98c5f" if theirs else "#3b6ea5")
            axis.vlines(limit, y - 0.42, y + 0.42, color="black", linewidth=2)
            beside = max(rate, limit) if 0.85 * limit < rate < 1.02 * limit else rate
            axis.annotate(f"  {row['images/s']}", (beside, y), va="center", size=8)
        axis.set_yticks(range(len(found)), [row["variant"] for row in found], size=8)
        axis.invert_yaxis()
        axis.margins(x=0.1)
        axis.set_xlim(left=0)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(title, size=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    label = "images/s; blue: our BAM, orange: the released form; black: the most that its bytes and FLOPs allow here"
    axes[-1, 0].set_xlabel(label, size=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(rows: Sequence[Row], context: Row) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(_above(context), markup=False)
    for of, keys, cells in tables([*map(_rounded, rows)], brief=True):
        grid = Table(title=of, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for key in keys:
            name = key == "variant"
            grid.add_column(key, justify="left" if name else "right", vertical="bottom", no_wrap=name)
        for line in cells:
            grid.add_row(*line)
        console.print()
        console.print(grid)


# The command


COMMANDS: dict[str, Callable[[Bench, argparse.Namespace], list[Row]]] = {
    "step": step,
    "module": module,
    "input": input_,
    "epoch": epoch,
    "sweep": sweep,
}


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "whole number above 0"  # argparse: "invalid whole number above 0 value: '0'"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bam-bench",
        description="How fast training is on this machine, beside what the machine could do (docs/performance.md).",
        epilog="""examples:
  bam-bench module                  BAM alone: time, passes over the map, memory; one or two minutes
  bam-bench step                    a training step of ResNet-50, from the typical peer's to ours; ten minutes on a CPU
  bam-bench step --no-compile       the same without torch.compile; three minutes
  bam-bench step --backbone preresnet110 --batch 128
  bam-bench input                   augmented batches: PIL and its workers beside ours
  bam-bench epoch                   what Lightning adds to a step; whole epochs through bam-train
  bam-bench sweep --packed 1 2 4    several runs at once: where trainer.runs_per_gpu gains, and where it loses

The variants of a call take turns in one process, on the same random batch, after their outputs and gradients have been
compared with float64. The tables are printed and, with spreads, kept in results/bench/<device>.md and .csv, with a chart;
a call replaces what that sub-command wrote there before. One that computes something wrong ends with exit code 1.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, function in COMMANDS.items():
        what = (function.__doc__ or "").strip().rstrip(".")
        one = commands.add_parser(name, help=what[0].lower() + what[1:], description=f"{what}.")
        option = partial(one.add_argument, type=_positive, metavar="N")
        if name in ("step", "epoch", "sweep"):
            default = "resnet50" if name == "step" else None
            backbones = config.choices("backbone")
            listed = "a network for CIFAR: a file of conf/backbone"
            one.add_argument("--backbone", choices=backbones, default=default, metavar="NAME", help=listed)
        option("--batch", help="images a step (128, and on a CPU 16 in step and module)")
        option("--rounds", help="blocks timed of each variant (10)")
        option("--threads", help="CPU threads (on a CPU one: the figures are then of one core)")
        one.add_argument(
            "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one"
        )
        if name in ("step", "module"):
            one.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
        if name == "step":
            option("--agree", help="also compare the losses of N steps, compiled and eager")
        if name == "sweep":
            option("--packed", nargs="+", help="how many runs at once (1 2 4 8; on a CPU 1 and one for each core)")
        one.add_argument(
            "--output-dir", default=".", metavar="DIR", help="folder that holds results/ (the current one)"
        )
    return parser


def main() -> None:
    """`bam-bench`; what was typed wrong ends in one line and exit code 2, a failed check in exit code 1."""
    options = _parser().parse_args()
    started = time.perf_counter()
    try:
        bench = Bench(options.device, options.threads, options.rounds)
        rows = COMMANDS[options.command](bench, options)
        if not bench.copy:
            bench.measure_ceilings()
        files = write(Path(options.output_dir) / "results" / "bench", options.command, rows, bench.context())
    except (ValueError, OSError) as error:
        print(f"bam-bench: {config.one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    show(rows, bench.context())
    _say(f"\n{time.perf_counter() - started:.0f} s; {', '.join(str(file) for file in files)}")
    if failed := [row["variant"] for row in rows if row.get("check") == "FAILED"]:
        print(f"bam-bench: not what float64 gives: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
