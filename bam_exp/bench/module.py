"""`bam-bench module`: an attention alone, forward and backward."""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from bam_exp.attention import BAM, CBAM, ECA, SE
from bam_exp.bench.forms import RELEASED, LiteralBAM
from bam_exp.bench.measure import Bench, Counter, Row, Saved, gradients, relative, say

MAPS = ((256, 32), (512, 16), (1024, 8))
"""Width and side of the maps at the three seams of a CIFAR ResNet-50."""

Make = Callable[[int], nn.Module]


def rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """BAM alone, forward and backward, at the three seams of a CIFAR ResNet-50."""
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
    found = []
    for channels, side in MAPS:
        shape = (options.batch or (128 if bench.cuda else 16), channels, side, side)
        found += _modules(bench, shape, forms | others if channels == MAPS[0][0] else forms)
    return found


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
    found: dict[str, Row] = {"a copy of the map": {"of": of, "variant": "a copy of the map", "kernels": 1, "passes": 2}}
    for name, make in kinds.items():
        say(f"{of}: {name}")
        torch.manual_seed(0)
        one = make(shape[1]).to(bench.device).to(memory_format=torch.channels_last)
        found[name] = {"of": of, "variant": name}

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
            found[name]["compile s"] = time.perf_counter() - started
        y = call()
        error = _error(make, one, x, grad, y)
        found[name] |= {"error": error, "check": "ok" if error < (0.05 if bench.cuda else 1e-4) else "FAILED"}
        found[name]["keeps layout"] = "yes" if y.is_contiguous(memory_format=torch.channels_last) else "NO"
        if not name.endswith(", compiled"):
            saved = Saved([x, *one.parameters()])
            with Counter() as counter, saved:
                call()
            found[name] |= {"kernels": counter.kernels, "passes": counter.bytes / x.nbytes}
            found[name]["saved beside the map MB"] = saved.bytes / 1e6
            found[name]["of the released"] = saved.bytes / 1e6 / found["released BAM"]["saved beside the map MB"]
        calls[name] = call
    count = max(1, round((2e9 if bench.cuda else 5e6) / x.nbytes))
    times = bench.interleave(calls, count=count, warm_up=20 if bench.cuda else 2)
    bench.measure_ceilings()
    released = median(times["released BAM"].seconds)
    for name, row in found.items():
        passes = row.get("passes") or found[name.removesuffix(", compiled")]["passes"]
        figures = bench.figures(times[name], shape[0], moved=passes * x.nbytes)
        found[name] = {**row, **figures, "time / released": median(times[name].seconds) / released}
    return list(found.values())


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
    pairs = [(y, expected.detach()), (x.grad, leaf.grad), (gradients(one), gradients(exact))]
    return max(relative(found, wanted) for found, wanted in pairs)
